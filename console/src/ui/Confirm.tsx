import type { ReactNode } from "react";
import { Dialog, DialogTrigger, Heading, Modal, ModalOverlay } from "react-aria-components";

import { Button } from "./Button";
import css from "./ui.module.css";

type Question = {
    title: string;
    /** What it is about, by name. */
    children: ReactNode;
    keep: string;
    act: string;
    look?: "primary" | "danger";
    onAct: () => void;
};

/** Asks before something that cannot be undone. */
export function Confirm({ trigger, ...question }: Question & { trigger: ReactNode }) {
    return (
        <DialogTrigger>
            {trigger}
            <Overlay {...question} />
        </DialogTrigger>
    );
}

/** Asks by itself, for as long as it is there. */
export function Asking({ onKeep, ...question }: Question & { onKeep: () => void }) {
    return <Overlay {...question} isOpen onOpenChange={onKeep} />;
}

function Overlay({ title, children, keep, act, look = "danger", onAct, ...rest }: Question & { isOpen?: boolean; onOpenChange?: () => void }) {
    return (
        <ModalOverlay className={css.overlay} isDismissable {...rest}>
            <Modal className={css.dialog}>
                <Dialog role="alertdialog">
                    {({ close }) => (
                        <>
                            <Heading slot="title">{title}</Heading>
                            <p>{children}</p>
                            <div className={css.actions}>
                                <Button onPress={close} autoFocus>
                                    {keep}
                                </Button>
                                <Button
                                    look={look}
                                    onPress={() => {
                                        close();
                                        onAct();
                                    }}
                                >
                                    {act}
                                </Button>
                            </div>
                        </>
                    )}
                </Dialog>
            </Modal>
        </ModalOverlay>
    );
}
