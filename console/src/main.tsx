import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { ApiError } from "./api/client";
import { App } from "./App";
import { WithSession } from "./session/session";
import { begin } from "./ui/theme";
import { WithToast } from "./ui/Toast";
import "./ui/tokens.css";

begin();

const RETRIES_MAX = 3;
/** Pages are loaded when they are opened, and after an upgrade the server has those of its own version only. */
const RELOADED = "reloaded";
const RELOAD_AGAIN_MS = 60_000;

addEventListener("vite:preloadError", () => {
    // Not again and again: then the page says what is wrong.
    if (Date.now() - Number(sessionStorage.getItem(RELOADED) ?? 0) < RELOAD_AGAIN_MS) return;
    sessionStorage.setItem(RELOADED, String(Date.now()));
    location.reload();
});

const client = new QueryClient({
    defaultOptions: {
        queries: {
            // Events say what has changed; this is for what they miss.
            staleTime: 30_000,
            // What the server has refused it refuses again.
            retry: (failures, error) => failures < RETRIES_MAX && !(error instanceof ApiError && error.status < 500),
        },
    },
});

const root = document.getElementById("root");
if (!root) throw new Error("index.html has no root");
createRoot(root).render(
    <StrictMode>
        <QueryClientProvider client={client}>
            <WithSession>
                <WithToast>
                    <App />
                </WithToast>
            </WithSession>
        </QueryClientProvider>
    </StrictMode>,
);
