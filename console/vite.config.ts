import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

/** Beside each file what browsers are sent that take it: the server compresses nothing. */
function compressed(): Plugin {
    let directory = "";
    return {
        name: "compressed",
        apply: "build",
        configResolved: (config) => {
            directory = config.build.outDir;
        },
        closeBundle: () => {
            for (const name of readdirSync(directory, { recursive: true, encoding: "utf8" })) {
                const path = join(directory, name);
                if (!statSync(path).isFile() || !/\.(css|html|js|svg)$/.test(name)) continue;
                writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
            }
        },
    };
}

export default defineConfig({
    plugins: [react(), compressed()],
    // Nothing inline: the content security policy allows files of our own only.
    build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false } },
    server: {
        proxy: { "/api": { target: process.env.CLOUDLINK_URL ?? "https://localhost:8443", secure: false } },
    },
});
