// Who is here. Nobody: the sign-in page. A session that ends while a page is open takes nothing away from it.

import { useQuery, useQueryClient } from "@tanstack/react-query";
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

/** Who has signed in. Only below [`WithSession`]. */
export function useMe(): Me {
    const me = useContext(Session);
    if (!me) throw new Error("nobody is signed in here");
    return me;
}

export function WithSession({ children }: { children: ReactNode }) {
    const me = useQuery(queries.me());
    if (me.data) {
        return (
            <Session value={me.data}>
                <Following />
                {children}
                <SessionOver />
            </Session>
        );
    }
    if (me.error instanceof ApiError && me.error.status === 401) return <SignIn />;
    if (me.error) return <Failure error={me.error} again={() => void me.refetch()} />;
    return <Skeleton />;
}

function Following() {
    const client = useQueryClient();
    useEffect(() => follow(client), [client]);
    return null;
}

function SessionOver() {
    const [isOver, setOver] = useState(false);
    useEffect(() => whenSignedOut(() => setOver(true)), []);
    return (
        <ModalOverlay className={ui.overlay} isOpen={isOver} isKeyboardDismissDisabled>
            <Modal className={ui.dialog}>
                <Dialog role="alertdialog">
                    <Heading slot="title">{t.session.overTitle}</Heading>
                    <p>{t.session.over}</p>
                    <div className={ui.actions}>
                        <a className={`${ui.button} ${ui.primary}`} href={signInAt()}>
                            {t.session.signIn}
                        </a>
                    </div>
                </Dialog>
            </Modal>
        </ModalOverlay>
    );
}

export async function signOut() {
    await body(api.POST("/api/v1/auth/logout")).catch(() => undefined);
    location.assign("/");
}
