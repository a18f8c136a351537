// Debian's Chromium, driven: what a page must never do is noticed on every page.

import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];

/** `screenshots`: a directory, or nothing. */
export async function open({ url, screenshots, viewport = { width: 1280, height: 860 } }) {
    const browser = await chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: ["--no-sandbox", "--disable-gpu"],
    });
    // The authority of the test's server is nobody's.
    const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport, baseURL: url, reducedMotion: "reduce" });
    // Only for the checks of this test: axe is run in the page, which the policy keeps others from.
    const page = await context.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(`error in the page: ${error}`));
    page.on("dialog", (dialog) => {
        faults.push(`a dialog: ${dialog.message()}`);
        void dialog.dismiss();
    });
    page.on("console", (message) => {
        // What the network says of refusals is part of the story.
        if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) faults.push(message.text());
    });
    return {
        browser,
        page,
        /** Accessible in both themes, with a picture of each. */
        async judge(name) {
            for (const theme of ["light", "dark"]) {
                await page.evaluate((theme) => {
                    document.documentElement.dataset.theme = theme;
                }, theme);
                const found = await violations(page);
                if (found.length > 0) throw new Error(`${name}, ${theme}: ${found.join("; ")}`);
                if (screenshots) {
                    mkdirSync(screenshots, { recursive: true });
                    await page.screenshot({ path: join(screenshots, `${name}-${theme}.png`), fullPage: true });
                }
            }
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
    await page.fill('input[name="login"]', who);
    await page.fill('input[name="password"]', "-");
    await page.click('button[type="submit"]');
    await page.click('button[type="submit"]');
    await page.waitForSelector("nav");
}

export function ensure(condition, what) {
    if (!condition) throw new Error(what);
}
