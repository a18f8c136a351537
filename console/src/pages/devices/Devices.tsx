import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useSearchParams } from "react-router";

import { api, body, InputError, type Schemas } from "../../api/client";
import { type DeviceFilter, queries } from "../../api/queries";
import { useWhole } from "../../api/whole";
import { useMe } from "../../session/session";
import { t } from "../../text/en";
import { Button } from "../../ui/Button";
import { FormDialog } from "../../ui/FormDialog";
import { Failure, PageHead } from "../../ui/parts";
import { Search } from "../../ui/Search";
import { Secret } from "../../ui/Secret";
import { useToast } from "../../ui/Toast";
import ui from "../../ui/ui.module.css";
import { DeviceTable } from "./DeviceTable";
import css from "./Devices.module.css";

export default function Devices() {
    const [params, setParams] = useSearchParams();
    const me = useMe();
    const [enrolling, setEnrolling] = useState<Schemas["EnrollmentTokenCreated"]>();
    const filter = filterOf(params);
    // Deep links and the back button: what is looked for is in the address.
    const set = (key: string, value: string) =>
        setParams(
            (before) => {
                if (value === "") before.delete(key);
                else before.set(key, value);
                return before;
            },
            { replace: true },
        );
    return (
        <>
            <PageHead title={t.devices.title} lead={t.devices.lead}>
                {me.role === "tenant" && <AddDevice onMade={setEnrolling} />}
            </PageHead>
            {enrolling && (
                <Secret secret={enrolling.token} onTaken={() => setEnrolling(undefined)}>
                    {t.devices.enroll(enrolling.device_name)}
                </Secret>
            )}
            <form className={css.filter} role="search" onSubmit={(event) => event.preventDefault()}>
                <Search label={t.devices.filter} hint={t.devices.filterHint} value={params.get("selector") ?? ""} onSet={(value) => set("selector", value)} />
                <Search label={t.devices.name} value={params.get("name") ?? ""} onSet={(value) => set("name", value)} />
                <label className={ui.field}>
                    <span className={ui.legend}>{t.devices.contact}</span>
                    <select className={ui.input} value={params.get("contact") ?? ""} onChange={(event) => set("contact", event.target.value)}>
                        <option value="">{t.devices.any}</option>
                        <option value="live">{t.devices.onlyLinked}</option>
                        <option value="not-live">{t.devices.onlyUnlinked}</option>
                        <option value="none">{t.devices.onlySilent}</option>
                    </select>
                </label>
            </form>
            <Groups selector={params.get("selector") ?? ""} onChoose={(selector) => set("selector", selector)} />
            <DeviceTable key={JSON.stringify(filter)} filter={filter} empty={params.size === 0 ? t.devices.empty : t.devices.noMatch} />
        </>
    );
}

const CONTACTS: Record<string, DeviceFilter> = { live: { linked: true }, "not-live": { linked: false }, none: { silent: true } };

function filterOf(params: URLSearchParams): DeviceFilter {
    const [selector, name, contact] = ["selector", "name", "contact"].map((key) => params.get(key) ?? "");
    return {
        ...(selector && { selector }),
        ...(name && { name_prefix: name }),
        ...(contact && CONTACTS[contact]),
    };
}

/** Lets one new device in. */
function AddDevice({ onMade }: { onMade: (made: Schemas["EnrollmentTokenCreated"]) => void }) {
    const make = async ({ device_name = "", labels = "" }: Record<string, string>) =>
        onMade(await body(api.POST("/api/v1/enrollment-tokens", { body: { device_name, labels: labelsOf(labels) } })));
    return (
        <FormDialog
            trigger={<Button look="primary">{t.devices.add}</Button>}
            title={t.devices.add}
            fields={[
                { name: "device_name", label: t.devices.addName },
                { name: "labels", label: t.devices.addLabels, hint: t.devices.addLabelsHint, isOptional: true },
            ]}
            act={t.devices.add}
            onAct={make}
        >
            <p>{t.devices.addText}</p>
        </FormDialog>
    );
}

/** Of `site=north, role=kiosk`. */
function labelsOf(text: string): Record<string, string> {
    const parts = text.split(",").map((part) => part.trim());
    return Object.fromEntries(
        parts.filter(Boolean).map((part) => {
            const at = part.indexOf("=");
            if (at < 1 || at === part.length - 1) throw new InputError(t.devices.badLabel(part));
            return [part.slice(0, at).trim(), part.slice(at + 1).trim()];
        }),
    );
}

/** Selectors with a name, to be chosen again. */
function Groups({ selector, onChoose }: { selector: string; onChoose: (selector: string) => void }) {
    const client = useQueryClient();
    const groups = useWhole(useInfiniteQuery(queries.groups()));
    const chosen = groups.find((group) => selector === `@${group.name}`);
    const say = useToast();
    const changed = () => client.invalidateQueries({ queryKey: ["groups"] });
    const make = useMutation({
        mutationFn: (group: { name: string; selector: string }) => body(api.POST("/api/v1/groups", { body: group })),
        onSettled: changed,
    });
    const remove = useMutation({
        mutationFn: ({ id }: Schemas["Group"]) => body<unknown>(api.POST("/api/v1/groups/{id}/delete", { params: { path: { id } } })),
        onSuccess: (_, { name, selector }) => {
            onChoose("");
            say({ text: t.groups.removed(name), undo: () => make.mutate({ name, selector }) });
        },
        onSettled: changed,
    });
    const save = async ({ name = "" }: Record<string, string>) => {
        await make.mutateAsync({ name, selector });
        onChoose(`@${name}`);
    };
    const error = make.error ?? remove.error;
    return (
        <div className={css.groups}>
            {error && <Failure error={error} />}
            {groups.map((group) => (
                <Button key={group.id} aria-pressed={group === chosen} onPress={() => onChoose(group === chosen ? "" : `@${group.name}`)}>
                    {group.name}
                </Button>
            ))}
            {chosen && (
                <Button look="danger" isDisabled={remove.isPending} onPress={() => remove.mutate(chosen)}>
                    {t.groups.remove}
                </Button>
            )}
            {selector !== "" && !selector.startsWith("@") && (
                <FormDialog
                    trigger={<Button>{t.groups.save}</Button>}
                    title={t.groups.save}
                    fields={[{ name: "name", label: t.groups.name }]}
                    act={t.app.save}
                    onAct={save}
                >
                    <p>{t.groups.saveText(selector)}</p>
                </FormDialog>
            )}
        </div>
    );
}
