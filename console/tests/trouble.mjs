// What goes wrong under an open page: the server restarts, the session ends while somebody types, texts are hostile.
// trouble.mjs URL SCREENSHOTS: a device is live, names and labels are hostile. `restart` and `sign-out` are done for it.

import { atTheProvider, end, ensure, have, HOSTILE, open, signIn } from "./browser.mjs";

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
await page.getByRole("alertdialog").getByRole("button", { name: "Approve" }).click();
await page.getByText("Nobody is waiting to be let in.").waitFor();
await page.setViewportSize({ width: 1280, height: 860 });

// What was chosen outlives a reload, and what was typed the session.
await page.goto("/access/new");
await page.getByLabel("Devices by labels").fill("site=north");
await page.getByRole("button", { name: "Next" }).click();
await page.getByLabel("read what it measures").check();
await page.reload();
await page.getByRole("button", { name: "Next" }).click();
ensure(await page.getByLabel("read what it measures").isChecked(), "what was chosen is lost");
await page.getByRole("button", { name: "Next" }).click();
await page.getByLabel("Why?").fill(HOSTILE);
await have("sign-out");
// Without a click: the stream has ended.
await page.getByRole("alertdialog").getByText("Your session is over").waitFor();
await judge("session-over");
const [tab] = await Promise.all([
    customer.context.waitForEvent("page"),
    page.getByRole("alertdialog").getByRole("link", { name: "Sign in" }).click(),
]);
await Promise.race([tab.waitForSelector("nav"), atTheProvider(tab, "tina")]);
await page.getByRole("alertdialog").waitFor({ state: "detached" });
await tab.close();
ensure((await page.getByLabel("Why?").inputValue()) === HOSTILE, "what was typed is lost");
await page.getByText("Live", { exact: true }).first().waitFor();
await page.getByRole("button", { name: "Let them in" }).click();
await page.waitForURL(/\/access$/);
await page.getByRole("listitem").filter({ hasText: HOSTILE }).getByRole("timer").first().waitFor();

// Hostile texts are texts, wherever they are shown.
await have("be-hostile");
for (const path of ["/", "/devices", "/access", "/access?view=requests", "/audit", "/people", "/notifications", "/rollouts"]) {
    await page.goto(path);
    // In the audit log it is folded up.
    await page.locator("main").getByText(HOSTILE).first().waitFor({ state: "attached" });
    ensure((await page.locator('img[src="x"], script:not([src])').count()) === 0, `${path} makes HTML of a text`);
}
await page.getByRole("link", { name: /site/ }).click();
await page.getByText("Left out").first().waitFor();
await page.getByText(HOSTILE).first().waitFor();
await page.goto("/devices");
await page.getByRole("link", { name: HOSTILE }).click();
await page.getByRole("heading", { level: 1, name: HOSTILE }).waitFor();
const status = page.getByRole("region", { name: "Status" });
ensure((await status.getByText(HOSTILE).count()) >= 2, "the page does not say what the device calls itself");
await judge("hostile");
await customer.close();
end("the story of trouble is told");
