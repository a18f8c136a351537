// What the server shows once, until somebody has taken it away.

import type { ReactNode } from "react";
import { useState } from "react";

import { t } from "../text/en";
import { Button } from "./Button";
import css from "./ui.module.css";

/** `children` says what it is for. */
export function Secret({ secret, onTaken, children }: { secret: string; onTaken: () => void; children: ReactNode }) {
    const [isCopied, setCopied] = useState(false);
    return (
        <div className={css.secret} role="status">
            <p>{children}</p>
            <code>{secret}</code>
            <div className={css.actions}>
                <Button onPress={() => void navigator.clipboard.writeText(secret).then(() => setCopied(true))}>{isCopied ? t.copy.copied : t.copy.copy}</Button>
                <Button onPress={onTaken}>{t.copy.taken}</Button>
            </div>
        </div>
    );
}
