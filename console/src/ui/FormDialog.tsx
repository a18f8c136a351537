// A question with a few fields. What was typed stays until it has been sent.

import { type FormEvent, type ReactNode, useState } from "react";
import { Dialog, DialogTrigger, Heading, Modal, ModalOverlay } from "react-aria-components";

import { t } from "../text/en";
import { Button } from "./Button";
import { Failure } from "./parts";
import css from "./ui.module.css";

export type Field = { name: string; label: string; hint?: string; value?: string; isOptional?: boolean; options?: Record<string, string> };

export function FormDialog(props: {
    trigger: ReactNode;
    title: string;
    /** Above the fields: what is about to happen, and to what. */
    children?: ReactNode;
    /** They may depend on what has been chosen. */
    fields: Field[] | ((values: Record<string, string>) => Field[]);
    act: string;
    look?: "primary" | "danger";
    /** Resolves when it is done: then the dialog closes. */
    onAct: (values: Record<string, string>) => Promise<unknown>;
}) {
    const [values, setValues] = useState<Record<string, string>>({});
    const [error, setError] = useState<Error>();
    const [isBusy, setBusy] = useState(false);
    const fields = typeof props.fields === "function" ? props.fields(values) : props.fields;
    const valueOf = (field: Field) => values[field.name] ?? field.value ?? Object.keys(field.options ?? {})[0] ?? "";
    const submit = async (event: FormEvent, close: () => void) => {
        event.preventDefault();
        setBusy(true);
        setError(undefined);
        try {
            await props.onAct(Object.fromEntries(fields.map((field) => [field.name, valueOf(field).trim()])));
            setValues({});
            close();
        } catch (error) {
            setError(error instanceof Error ? error : new Error(String(error)));
        } finally {
            setBusy(false);
        }
    };
    return (
        <DialogTrigger onOpenChange={(isOpen) => isOpen && setError(undefined)}>
            {props.trigger}
            <ModalOverlay className={css.overlay} isDismissable>
                <Modal className={css.dialog}>
                    <Dialog>
                        {({ close }) => (
                            <form className={css.form} onSubmit={(event) => void submit(event, close)}>
                                <Heading slot="title">{props.title}</Heading>
                                {props.children}
                                {fields.map((field) => (
                                    <label key={field.name} className={css.field}>
                                        <span className={css.legend}>{field.label}</span>
                                        {field.options ? (
                                            <select
                                                className={css.input}
                                                value={valueOf(field)}
                                                onChange={(event) => setValues({ ...values, [field.name]: event.target.value })}
                                            >
                                                {Object.entries(field.options).map(([value, label]) => (
                                                    <option key={value} value={value}>
                                                        {label}
                                                    </option>
                                                ))}
                                            </select>
                                        ) : (
                                            <input
                                                className={css.input}
                                                value={valueOf(field)}
                                                required={!field.isOptional}
                                                onChange={(event) => setValues({ ...values, [field.name]: event.target.value })}
                                            />
                                        )}
                                        {field.hint && <span className={css.hint}>{field.hint}</span>}
                                    </label>
                                ))}
                                {error && <Failure error={error} />}
                                <div className={css.actions}>
                                    <Button onPress={close}>{t.app.cancel}</Button>
                                    <Button type="submit" look={props.look ?? "primary"} isDisabled={isBusy}>
                                        {props.act}
                                    </Button>
                                </div>
                            </form>
                        )}
                    </Dialog>
                </Modal>
            </ModalOverlay>
        </DialogTrigger>
    );
}
