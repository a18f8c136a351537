// What goes wrong under an open page: the server restarts, the session ends while somebody types, texts are hostile.
// trouble.mjs URL SCREENSHOTS: a device is live, names and labels are hostile. `restart` and `sign-out` are done for it.

import { atTheProvider, end, ensure, have, open, signIn } from "./browser.mjs";

const HOSTILE = "<img src=x onerror=alert(1)>";

const [url, screenshots] = process.argv.slice(2);
const customer = await open({ url, screenshots });
const { page, judge } = customer;
await page.goto("/");
await signIn(page, "tina");

// The page says since when it is old, and is live again by itself.
await page.getByText("Live", { exact: true }).first().waitFor();
await have("stop");
await page.getByText(/^Not live since/).waitFor();
await judge("stale");
await have("start");
await page.getByText(/^Not live since/).waitFor({ state: "detached", timeout: 60_000 });
await have("ask");
await page.getByText("asked after the restart").waitFor();

// Answered with a thumb.
await page.setViewportSize({ width: 390, height: 844 });
const approve = page.getByRole("button", { name: "Approve" });
ensure((await approve.boundingBox()).height >= 44, "Approve is too small for a thumb");
await judge("phone-request");
await approve.click();
await page.getByText("Nobody is waiting to be let in.").waitFor();
await page.setViewportSize({ width: 1280, height: 860 });

// What was typed outlives the session.
await page.goto("/access/new");
await page.getByLabel("Devices by labels").fill("site=north");
await page.getByRole("button", { name: "Next" }).click();
await page.getByLabel("read what it measures").check();
await page.getByRole("button", { name: "Next" }).click();
await page.getByLabel("Why?").fill(HOSTILE);
await have("sign-out");
// Without a click: the stream has ended.
await page.getByRole("alertdialog").getByText("Your session is over").waitFor();
await judge("session-over");
await page.getByRole("alertdialog").getByRole("link", { name: "Sign in" }).click();
await Promise.race([page.waitForURL(/\/access\/new$/), atTheProvider(page, "tina")]);
await page.waitForURL(/\/access\/new$/);
await page.getByRole("button", { name: "Next" }).click();
ensure(await page.getByLabel("read what it measures").isChecked(), "what was chosen is lost");
await page.getByRole("button", { name: "Next" }).click();
ensure((await page.getByLabel("Why?").inputValue()) === HOSTILE, "what was typed is lost");
await page.getByRole("button", { name: "Let them in" }).click();
await page.waitForURL(/\/access$/);
await page.getByRole("listitem").filter({ hasText: HOSTILE }).getByRole("timer").first().waitFor();

// Hostile texts are texts, wherever they are shown.
for (const path of ["/", "/devices", "/access", "/access?view=requests", "/audit", "/sessions", "/people", "/network", "/notifications", "/rollouts"]) {
    await page.goto(path);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.waitForLoadState("load");
    await page.waitForTimeout(300);
    ensure((await page.locator('img[src="x"], script:not([src])').count()) === 0, `${path} makes HTML of a text`);
}
await page.goto("/devices");
await page.getByRole("link", { name: HOSTILE }).click();
await page.getByRole("heading", { level: 1, name: HOSTILE }).waitFor();
await judge("hostile");
ensure((await page.locator('img[src="x"]').count()) === 0, "the page of a device makes HTML of its name");
await customer.close();
end("the story of trouble is told");
