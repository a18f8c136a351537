// Debian's Chromium, driven: what a page must never do is noticed on every page.

import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** What a browser must show, and not run: it becomes an element where a page takes it for HTML. */
export const HOSTILE = "<img src=x onerror=alert(1)>";
const PICTURE_PX_MAX = 1600;
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];

export async function launch() {
    return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
}

/** Somebody with a browser of its own. `screenshots`: a directory, or nothing. */
export async function open({ url, screenshots, viewport = { width: 1280, height: 860 } }) {
    const browser = await launch();
    // The authority of the test's server is nobody's.
    const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport, baseURL: url, reducedMotion: "reduce" });
    const page = await context.newPage();
    if (screenshots) mkdirSync(screenshots, { recursive: true });
    const faults = [];
    page.on("pageerror", (error) => faults.push(`error in the page: ${error}`));
    page.on("dialog", (dialog) => {
        if (dialog.type() !== "beforeunload") faults.push(`a dialog: ${dialog.message()}`);
        void dialog.accept();
    });
    page.on("console", (message) => {
        // What the network says of refusals is part of the story.
        const isNetwork = /^Failed to load resource|^WebSocket connection to/.test(message.text());
        if (message.type() === "error" && !isNetwork) faults.push(`${message.text()} (${page.url()} ${JSON.stringify(message.location())})`);
    });
    /** Of the whole page, unless it is very long. */
    const picture = async (path) => {
        const { width, height } = page.viewportSize();
        const whole = await page.evaluate(() => document.documentElement.scrollHeight);
        await page.setViewportSize({ width, height: Math.min(Math.max(whole, height), PICTURE_PX_MAX) });
        await page.screenshot({ path });
        await page.setViewportSize({ width, height });
    };
    return {
        browser,
        context,
        page,
        /** Accessible in both themes, with a picture of each. */
        async judge(name) {
            for (const theme of ["light", "dark"]) {
                await page.evaluate((theme) => {
                    document.documentElement.dataset.theme = theme;
                }, theme);
                const found = await violations(page);
                if (found.length > 0) throw new Error(`${name}, ${theme}: ${found.join("; ")}`);
                if (screenshots) await picture(join(screenshots, `${name}-${theme}.png`));
            }
            if ((await page.locator('img[src="x"]').count()) > 0) throw new Error(`${name} makes HTML of a text`);
            const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
            if (wide > 0) throw new Error(`${name} is ${wide} px wider than the window`);
        },
        async close() {
            await browser.close();
            if (faults.length > 0) throw new Error(faults.join("\n"));
        },
    };
}

async function violations(page) {
    const session = await page.context().newCDPSession(page);
    // In the page's world, past its policy, as a debugger may.
    await session.send("Runtime.evaluate", { expression: axe });
    const expression = `axe.run(document, { runOnly: ${JSON.stringify(TAGS)} }).then((found) => JSON.stringify(found.violations))`;
    const { result } = await session.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    await session.detach();
    return JSON.parse(result.value).map((each) => `${each.id}: ${each.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

/** Signs in at the provider's own pages, wherever that leads. */
export async function signIn(page, who) {
    await page.getByRole("link", { name: "Sign in" }).click();
    await atTheProvider(page, who);
}

export async function atTheProvider(page, who) {
    await page.fill('input[name="login"]', who);
    await page.fill('input[name="password"]', "-");
    await page.click('button[type="submit"]');
    await page.click('button[type="submit"]');
    await page.waitForSelector("nav");
}

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has the one who started this do something, and waits until it is done. */
export async function have(what) {
    console.log(`@${what}`);
    const { done } = await answers.next();
    if (done) throw new Error(`nobody did ${what}`);
}

/** Nothing of this reads on: the story is told. */
export function end(text) {
    console.log(text);
    process.stdin.destroy();
}

export function ensure(condition, what) {
    if (!condition) throw new Error(what);
}
