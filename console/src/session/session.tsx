// Who is here. Nobody: the sign-in page. A session that ends while a page is open takes nothing away from it.

import { focusManager, useQuery, useQueryClient } from "@tanstack/react-query";
import { createContext, type ReactNode, useContext, useEffect, useState } from "react";
import { Dialog, Heading, Modal, ModalOverlay } from "react-aria-components";

import { api, ApiError, body, type Schemas, whenSignedOut } from "../api/client";
import { follow } from "../api/live";
import { queries } from "../api/queries";
import { t } from "../text/en";
import ui from "../ui/ui.module.css";
import { Failure, Skeleton } from "../ui/parts";
import { SignIn, signInAt } from "./SignIn";

export type Me = Schemas["Me"];

const Session = createContext<Me | undefined>(undefined);

/** Tabs tell each other that somebody has signed in. */
const CHANNEL = "cloudlink session";

/** Who has signed in. Only below [`WithSession`]. */
export function useMe(): Me {
    const me = useContext(Session);
    if (!me) throw new Error("nobody is signed in here");
    return me;
}

export function WithSession({ children }: { children: ReactNode }) {
    const me = useQuery(queries.me());
    const [first, setFirst] = useState<string>();
    if (me.data && first === undefined) setFirst(me.data.id);
    // Somebody else has signed in, in another tab. What the one before was shown is not theirs.
    const isAnother = first !== undefined && me.data !== undefined && me.data.id !== first;
    useEffect(() => {
        if (isAnother) leave();
    }, [isAnother]);
    if (isAnother) return null;
    if (me.data) return <Here me={me.data}>{children}</Here>;
    if (me.error instanceof ApiError && me.error.status === 401) return <SignIn />;
    if (me.error) return <Failure error={me.error} again={() => void me.refetch()} />;
    return <Skeleton />;
}

function Here({ me, children }: { me: Me; children: ReactNode }) {
    const client = useQueryClient();
    const [isOver, setOver] = useState(false);
    useEffect(() => whenSignedOut(() => setOver(true)), []);
    useEffect(() => {
        const channel = new BroadcastChannel(CHANNEL);
        if (!isOver) {
            channel.postMessage("signed in");
            channel.close();
            return follow(client);
        }
        // Nobody is let in any more, and to go on asking would count as failed attempts of everybody at this address: what is asked for
        // now and then waits as it does in a window that nobody looks at.
        focusManager.setFocused(false);
        const check = () =>
            void body(api.GET("/api/v1/me")).then(
                (now) => (now.id === me.id ? setOver(false) : leave()),
                () => undefined,
            );
        channel.onmessage = check;
        addEventListener("focus", check);
        return () => {
            focusManager.setFocused(undefined);
            channel.close();
            removeEventListener("focus", check);
        };
    }, [isOver, client, me.id]);
    return (
        <Session value={me}>
            {children}
            <ModalOverlay className={ui.overlay} isOpen={isOver} isKeyboardDismissDisabled>
                <Modal className={ui.dialog}>
                    <Dialog role="alertdialog">
                        <Heading slot="title">{t.session.overTitle}</Heading>
                        <p>{t.session.over}</p>
                        <div className={ui.actions}>
                            {/* In a tab of its own: what is open here stays. */}
                            <a className={`${ui.button} ${ui.primary}`} href={signInAt()} target="_blank" rel="noopener">
                                {t.session.signIn}
                            </a>
                        </div>
                    </Dialog>
                </Modal>
            </ModalOverlay>
        </Session>
    );
}

/** Fails when the server could not be told: then somebody is still signed in. */
export async function signOut() {
    await api.POST("/api/v1/auth/logout").catch((error: unknown) => {
        if (!(error instanceof ApiError && error.status === 401)) throw error;
    });
    leave();
}

/** Nothing of what was shown or typed stays for whoever comes next. */
function leave() {
    sessionStorage.clear();
    location.assign("/");
}
