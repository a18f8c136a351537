import type { ReactNode } from "react";
import { Dialog, DialogTrigger, Heading, Modal, ModalOverlay } from "react-aria-components";

import { Button } from "./Button";
import css from "./ui.module.css";

/** Asks before something that cannot be undone; `children` names what it is about. */
export function Confirm(props: {
    trigger: ReactNode;
    title: string;
    children: ReactNode;
    keep: string;
    act: string;
    onAct: () => void;
}) {
    return (
        <DialogTrigger>
            {props.trigger}
            <ModalOverlay className={css.overlay} isDismissable>
                <Modal className={css.dialog}>
                    <Dialog role="alertdialog">
                        {({ close }) => (
                            <>
                                <Heading slot="title">{props.title}</Heading>
                                <p>{props.children}</p>
                                <div className={css.actions}>
                                    <Button onPress={close} autoFocus>
                                        {props.keep}
                                    </Button>
                                    <Button
                                        look="danger"
                                        onPress={() => {
                                            close();
                                            props.onAct();
                                        }}
                                    >
                                        {props.act}
                                    </Button>
                                </div>
                            </>
                        )}
                    </Dialog>
                </Modal>
            </ModalOverlay>
        </DialogTrigger>
    );
}
