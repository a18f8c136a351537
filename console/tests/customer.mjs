// The customer's story: sign in, let in who asks, close the door, let somebody in unasked, look at devices, sign out.
// customer.mjs URL WHO SCREENSHOTS: a request is open, a device is live. `enroll TOKEN` and `use TOKEN` are done for it.

import { end, ensure, have, HOSTILE, open, signIn } from "./browser.mjs";

const [url, who, screenshots] = process.argv.slice(2);
// Pictures are for people.
const mark = screenshots ? "the heating is cold:" : HOSTILE;
const console_ = await open({ url, screenshots });
const { page, judge } = console_;

await page.goto("/access?view=requests");
await page.getByRole("link", { name: "Sign in" }).waitFor();
await judge("sign-in");
await signIn(page, who);

// Where it was going, with the filter.
ensure(page.url().endsWith("/access?view=requests"), `a deep link leads to ${page.url()}`);
await page.getByRole("button", { name: "Approve" }).waitFor();
await judge("requests");

await page.getByRole("link", { name: "Home" }).click();
await page.getByText("Live", { exact: true }).first().waitFor();
await judge("home-request");
await page.getByRole("button", { name: "Approve" }).click();
// What is about to be opened is read first.
await page.getByRole("alertdialog").getByText("restart the device").waitFor();
await judge("approve");
await page.getByRole("alertdialog").getByRole("button", { name: "Approve" }).click();
await page.getByRole("timer").waitFor();
await page.getByText("Nobody is waiting to be let in.").waitFor();
await judge("home-open");

// Closing asks first, and names what it is about.
await page.getByRole("button", { name: "Close now" }).click();
const dialog = page.getByRole("alertdialog");
ensure((await dialog.textContent()).includes("restart the device"), "the question does not say what is closed");
await judge("close");
await page.keyboard.press("Escape");
await dialog.waitFor({ state: "detached" });
await page.getByRole("timer").waitFor();
await page.getByRole("button", { name: "Close now" }).click();
await dialog.getByRole("button", { name: "Close now" }).click();
await page.getByText("Nobody may come in. Every door is closed.").waitFor();

// Unasked, in three steps; what was chosen outlives a reload.
await page.getByRole("link", { name: "Devices" }).click();
await page.getByRole("row").nth(1).waitFor();
await judge("devices");
await page.getByLabel("Selector").fill("site=north");
await page.keyboard.press("Enter");
await page.waitForURL(/selector=site%3Dnorth/);
await page.getByRole("link", { name: /gw/ }).first().click();
await page.getByRole("heading", { name: "Status" }).waitFor();
await page.getByText("ordered", { exact: false }).or(page.getByText("Unknown")).first().waitFor();
await judge("device");
await page.getByRole("link", { name: "Let somebody in" }).click();
await page.getByText("This device").waitFor();
await judge("grant-who");
await page.getByRole("button", { name: "Next" }).click();
await page.getByRole("button", { name: "Next" }).click();
await page.getByRole("alert").filter({ hasText: "Choose at least one" }).waitFor();
await page.getByLabel("read what it measures").check();
await judge("grant-what");
await page.getByRole("button", { name: "Next" }).click();
await page.getByLabel("Why?").fill(`${mark} ticket 4711`);
await page.getByLabel("30 minutes").check();
await page.getByText(/where the device is, that is .* (JST|GMT\+9)/).waitFor();
await judge("grant-until");
await page.getByRole("button", { name: "Let them in" }).click();
await page.waitForURL(/\/access$/);
await page.getByRole("timer").waitFor();
ensure(await page.getByText(`${mark} ticket 4711`).isVisible(), "what was typed is not shown as it was typed");
await judge("access");

await page.getByRole("link", { name: "People" }).click();
await page.getByText(`${who}@example.com`).waitFor();
await judge("people");

// A program of the customer's, and its token, which is shown once.
const secret = page.getByRole("status").locator("code");
await page.getByRole("button", { name: "Add a service account" }).click();
await page.getByRole("dialog").getByLabel("Name").fill("ticket-system");
await page.getByRole("dialog").getByRole("button", { name: "Add a service account" }).click();
await page.getByRole("listitem").filter({ hasText: "ticket-system" }).getByRole("button", { name: "New token" }).click();
await page.getByLabel("What it is for").fill("the first");
await page.getByRole("dialog").getByRole("button", { name: "New token" }).click();
await have(`use ${await secret.textContent()}`);
await judge("token");
await page.getByRole("button", { name: "I have it" }).click();
await secret.waitFor({ state: "detached" });

// Another device, which enrolls with what is shown.
await page.getByRole("link", { name: "Devices" }).click();
await page.getByRole("button", { name: "Add a device" }).click();
await page.getByLabel("Name of the device").fill("gw-new");
await page.getByRole("dialog").getByLabel("Labels").fill("south");
await page.getByRole("dialog").getByRole("button", { name: "Add a device" }).click();
await page.getByRole("dialog").getByText("south is no label").waitFor();
await page.getByRole("dialog").getByLabel("Labels").fill("site=south, role=kiosk");
await judge("add-device");
await page.getByRole("dialog").getByRole("button", { name: "Add a device" }).click();
await have(`enroll ${await secret.textContent()}`);
const added = page.getByRole("row").filter({ hasText: "gw-new" });
await added.getByText("Live").waitFor();
await added.getByText("role=kiosk").waitFor();
await judge("enroll");
await page.getByRole("link", { name: "Account" }).click();
await page.getByText("This one").waitFor();
// Signed in on another computer as well, and not any more.
const elsewhere = await open({ url });
await elsewhere.page.goto("/");
await signIn(elsewhere.page, who);
await page.getByRole("button", { name: "Sign out everywhere else" }).waitFor();
await judge("account");
await page.getByRole("button", { name: "Sign out everywhere else" }).click();
await elsewhere.page.getByText("Your session is over").waitFor();
await elsewhere.close();
await page.getByText("This one").waitFor();

// On a phone.
await page.setViewportSize({ width: 390, height: 844 });
await page.getByRole("link", { name: "Home" }).click();
await page.getByRole("button", { name: "Close now" }).waitFor();
const box = await page.getByRole("button", { name: "Close now" }).boundingBox();
ensure(box.height >= 44, `a thumb needs more than ${box.height} px`);
await judge("phone-home");
await page.getByRole("button", { name: "Close now" }).click();
await page.getByRole("alertdialog").getByRole("button", { name: "Close now" }).click();
await page.getByText("Nobody may come in. Every door is closed.").waitFor();

await page.getByRole("link", { name: "Home" }).click();
await page.getByRole("link", { name: "Let somebody in" }).click();
await page.getByLabel("Devices by labels").fill("site=left-behind");
await page.getByRole("link", { name: "Account" }).click();
const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }]));
const cookie = (await console_.context.cookies()).find(({ name }) => name === "__Host-cloudlink");
ensure(cookie.httpOnly && cookie.secure && cookie.sameSite !== "None", `the cookie is ${JSON.stringify({ ...cookie, value: "" })}`);
ensure(!kept.includes(cookie.value) && !/token|secret/i.test(kept), `the browser keeps ${kept}`);
await page.getByRole("button", { name: "Sign out" }).click();
await page.getByRole("link", { name: "Sign in" }).waitFor();
ensure(kept.includes("left-behind"), "what was typed is not kept");
const left = await page.evaluate(() => JSON.stringify({ ...sessionStorage }));
ensure(!left.includes("left-behind"), `what was typed is left for whoever comes next: ${left}`);
await console_.close();
end("the customer's story is told");
