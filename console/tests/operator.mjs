// The operator's story, and the customer's half of it: ask to come in, be let in, work in a terminal while the owner watches, be shown the
// door, look at what was recorded; a rollout; receipts and the audit log.
// operator.mjs URL SCREENSHOTS: a device is live, and a grant allows its metrics to be read.

import { end, ensure, HOSTILE, open, signIn } from "./browser.mjs";

/** From the owner's click until the operator's screen says so. */
const CUT_MS_MAX = 1000;
const [url, screenshots] = process.argv.slice(2);
/** As text it is found, and as HTML it would be run. Pictures are for people. */
const MARK = screenshots ? "a device" : HOSTILE;
const TICKET = `ticket 4712 ${MARK}`;
const [operator, customer] = await Promise.all([open({ url, screenshots }), open({ url, screenshots })]);
const [olga, tina] = [operator.page, customer.page];

await Promise.all([
    olga.goto("/devices").then(() => signIn(olga, "olga")),
    tina.goto("/").then(() => signIn(tina, "tina")),
]);

// What is not allowed is there, says why, and can be asked for.
await olga.getByRole("row").nth(1).waitFor();
await olga.keyboard.press("Tab");
await olga.getByRole("link", { name: "gw-1" }).click();
const terminal = olga.getByRole("listitem").filter({ hasText: "Terminal" });
await terminal.getByText("No grant of its owner allows this now.").waitFor();
ensure(await terminal.getByRole("button", { name: "Open" }).isDisabled(), "a terminal can be opened without a grant");
await operator.judge("actions-closed");
await terminal.getByRole("button", { name: "Ask for access" }).click();
await olga.getByRole("dialog").getByText("open a terminal").waitFor();
await operator.judge("ask");
await olga.getByLabel("Why?").fill(TICKET);
await olga.getByRole("dialog").getByRole("button", { name: "Ask" }).click();
await terminal.getByText("Asked;").waitFor();

// It appears at the owner's without a reload, and so does the answer at the operator's.
const asked = tina.getByRole("listitem").filter({ hasText: "ticket 4712" });
await asked.waitFor();
await asked.getByText(TICKET).waitFor();
await asked.getByRole("button", { name: "Approve" }).click();
await tina.getByRole("alertdialog").getByRole("button", { name: "Approve" }).click();
await terminal.getByText("Allowed until").waitFor();
await operator.judge("actions-open");

await terminal.getByRole("button", { name: "Open" }).click();
await olga.getByLabel("Why?").fill(TICKET);
await olga.getByRole("dialog").getByRole("button", { name: "Open" }).click();
await olga.waitForURL(/\/sessions\//);
const screen = olga.locator(".xterm-rows");
await olga.locator(".xterm-helper-textarea").focus();
await screen.getByText("device>").first().waitFor();
await olga.keyboard.type("printf '\\033[38;2;255;120;0mhello-%d\\033[0m\\n' $((40 + 2))\n");
await screen.getByText("hello-42").first().waitFor();
// Nor does what a device writes, or the title that it gives its window.
await olga.keyboard.type(`printf '\\033]0;${MARK}\\007${MARK}\\n'\n`);
await screen.getByText(MARK).nth(1).waitFor();
await olga.getByRole("timer").waitFor();
await operator.judge("terminal");

// A terminal takes every key but one, and a click on a link ends nothing unasked.
await olga.keyboard.press("Control+Shift+M");
ensure(await olga.evaluate(() => document.activeElement === document.body), "the keyboard cannot leave the terminal");
await olga.getByRole("link", { name: "Devices" }).click();
await olga.getByRole("alertdialog").getByText("ends when you leave this page").waitFor();
await operator.judge("leave");
await olga.getByRole("alertdialog").getByRole("button", { name: "Stay" }).click();
await olga.getByRole("alertdialog").waitFor({ state: "detached" });
await screen.getByText("hello-42").first().waitFor();

// The owner sees it, and cannot type.
await tina.getByRole("link", { name: /Terminal on gw-1/ }).click();
await tina.getByText("You are watching").waitFor();
await tina.locator(".xterm-rows").getByText("hello-42").first().waitFor();
await olga.getByText("joined").waitFor();
const lines = async (page) => [await page.locator(".xterm-rows > div").count(), await page.locator(".xterm-screen").evaluate((screen) => screen.clientWidth)];
ensure(`${await lines(tina)}` === `${await lines(olga)}`, `who watches sees ${await lines(tina)}, and not ${await lines(olga)}`);
await customer.judge("watch");

// The door is closed: the terminal dies, and says why.
await tina.getByRole("link", { name: "Access", exact: true }).click();
const row = tina.getByRole("listitem").filter({ hasText: "ticket 4712" });
await row.getByRole("button", { name: "Close now" }).click();
const told = olga.getByRole("alert").filter({ hasText: "The owner closed the door" });
const before = performance.now();
await Promise.all([tina.getByRole("alertdialog").getByRole("button", { name: "Close now" }).click(), told.waitFor()]);
const took = performance.now() - before;
ensure(took <= CUT_MS_MAX, `the terminal died ${took.toFixed(0)} ms after the door was closed`);
console.log(`the terminal died ${took.toFixed(0)} ms after the click`);
await olga.getByText("This session is over").waitFor();
await operator.judge("terminal-over");

// What was recorded is what was seen, for both.
await tina.getByRole("link", { name: "Sessions" }).click();
await tina.getByRole("link", { name: /Terminal on gw-1/ }).click();
await tina.getByText("It is what was recorded").waitFor();
await tina.getByRole("button", { name: "Play" }).click();
await tina.locator(".xterm-rows").getByText("hello-42").first().waitFor();
await tina.getByLabel("Place in the recording").fill("0");
await tina.locator(".xterm-rows").getByText("hello-42").first().waitFor({ state: "detached" });
await tina.getByLabel("Place in the recording").press("End");
await tina.locator(".xterm-rows").getByText("hello-42").first().waitFor();
await customer.judge("recording");

// A receipt, which is made when everything under the grant has ended.
await tina.goto("/access?view=revoked");
const past = tina.getByRole("listitem").filter({ hasText: "ticket 4712" });
const link = await past.getByRole("link", { name: "Receipt" }).getAttribute("href");
const receipt = async () => (await customer.context.request.get(link)).status();
for (let tries = 0; (await receipt()) !== 200; tries += 1) {
    ensure(tries < 30, "there is no receipt");
    await tina.waitForTimeout(500);
}

// Somebody who is not let in may look, and nothing else.
await olga.goto("/rollouts");
await olga.getByRole("button", { name: "Plan a rollout" }).click();
await olga.getByLabel("Selector").fill("site");
await olga.getByLabel("At most a minute").fill("1");
await olga.getByLabel("Why?").fill("ticket 4713");
await operator.judge("rollout-new");
await olga.getByRole("dialog").getByRole("button", { name: "Plan a rollout" }).click();
await olga.waitForURL(/\/rollouts\/./);
await olga.getByText("Planned").waitFor();
await operator.judge("rollout-planned");
await olga.getByRole("button", { name: "Begin" }).click();
await olga.getByRole("alertdialog").getByRole("button", { name: "Begin" }).click();
await olga.getByRole("img", { name: "1 of 2 are done" }).waitFor();
await olga.getByRole("button", { name: "Pause" }).click();
await olga.getByText("Paused").waitFor();
await operator.judge("rollout-paused");
await olga.getByRole("button", { name: "Go on" }).click();
await olga.getByText("Running").waitFor();
await olga.getByRole("button", { name: "Abort" }).click();
await olga.getByRole("alertdialog").getByText("1 that have not begun").waitFor();
await olga.getByRole("alertdialog").getByRole("button", { name: "Abort" }).click();
await olga.getByText("Aborted").waitFor();
await olga.getByRole("link", { name: "Rollouts", exact: true }).click();
await olga.getByRole("link", { name: "Read what it measures: site" }).waitFor();
await operator.judge("rollouts");

await olga.goto("/nodes");
await olga.getByText("Serving").waitFor();
await operator.judge("nodes");
await olga.goto("/devices?selector=site%3Dnorth");
await olga.getByRole("button", { name: "Save as a group" }).click();
await olga.getByLabel("Name of the group").fill("north");
await olga.getByRole("dialog").getByRole("button", { name: "Save" }).click();
await olga.waitForURL(/selector=%40north/);
await olga.getByRole("link", { name: "gw-1" }).waitFor();
await operator.judge("groups");
await olga.getByRole("button", { name: "Delete this group" }).click();
await olga.getByText("The group north is deleted.").waitFor();
await operator.judge("undo");
await olga.getByRole("button", { name: "Undo" }).click();
await olga.getByRole("button", { name: "north", exact: true }).click();
await olga.waitForURL(/selector=%40north/);
await olga.getByRole("link", { name: "gw-1" }).waitFor();
await olga.getByRole("row").nth(1).focus();
await olga.keyboard.press("Enter");
await olga.getByRole("button", { name: "Show" }).click();
await olga.locator("figure canvas").nth(2).waitFor();
await operator.judge("metrics");
await olga.goBack();
await olga.waitForURL(/selector=%40north/);
await olga.goto("/audit");
await olga.getByText("There is no such page").waitFor();

// The owner checks what was done, and what the network must let through.
await tina.goto("/audit?for=nothing-like-that");
await tina.getByText("No entry has all of these words.").waitFor();
await tina.getByLabel("Show those with").fill("ticket 4712");
await tina.keyboard.press("Enter");
await tina.getByText("Somebody asked to come in").waitFor();
ensure((await tina.getByText("Somebody signed in").count()) === 0, "the filter lets others through");
await tina.getByRole("button", { name: "Verify" }).click();
await tina.getByText(/All \d+ entries fit/).waitFor();
await customer.judge("audit");
await tina.goto("/network");
await tina.getByText("by 2 devices").first().waitFor();
await customer.judge("network");
await tina.goto("/notifications");
await tina.getByLabel("Your address").fill("tina@mail.example.com");
await tina.getByRole("button", { name: "Save" }).click();
await tina.getByText("Saved.").waitFor();
await tina.getByRole("button", { name: "Add a threshold" }).click();
await tina.getByLabel("Name", { exact: true }).fill("silent");
await tina.getByLabel("Of", { exact: true }).fill("1800");
await tina.getByLabel("Of the devices like").fill("site=north");
await tina.getByRole("dialog").getByRole("button", { name: "Add a threshold" }).click();
await tina.getByText("Seconds without contact above 1800, of site=north").waitFor();
await customer.judge("notifications");
await tina.goto("/sessions");
await tina.getByText("The owner closed the door").waitFor();
await customer.judge("sessions");

await operator.close();
await customer.close();
end("the operator's story is told");
