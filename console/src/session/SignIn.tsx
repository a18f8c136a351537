import { useQuery } from "@tanstack/react-query";

import { api, body } from "../api/client";
import { t } from "../text/en";
import { Asked } from "../ui/parts";
import ui from "../ui/ui.module.css";
import css from "./SignIn.module.css";

/** Where the browser goes to sign in, and comes back to this page from. */
export function signInAt(): string {
    return `/api/v1/auth/login?return_to=${encodeURIComponent(location.pathname + location.search)}`;
}

export function SignIn() {
    const config = useQuery({ queryKey: ["sign_in"], queryFn: () => body(api.GET("/api/v1/auth/config")) });
    return (
        <main className={css.page}>
            <div className={css.box}>
                <img src="/icon.svg" alt="" width="40" height="40" />
                <h1>{t.session.title}</h1>
                <p className={ui.soft}>{t.session.lead}</p>
                <Asked of={config}>
                    {(config) =>
                        config.issuer ? (
                            <a className={`${ui.button} ${ui.primary} ${ui.large}`} href={signInAt()}>
                                {t.session.signIn}
                            </a>
                        ) : (
                            <p role="alert">{t.session.noProvider}</p>
                        )
                    }
                </Asked>
            </div>
        </main>
    );
}
