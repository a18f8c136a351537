import ui from "./ui.module.css";

/** Is looked for when Enter is pressed or the field is left, not with each letter. */
export function Search(props: { label: string; hint?: string; value: string; onSet: (value: string) => void }) {
    return (
        <label className={ui.field}>
            <span className={ui.legend}>{props.label}</span>
            <input
                key={props.value}
                className={ui.input}
                type="search"
                defaultValue={props.value}
                placeholder={props.hint}
                onBlur={(event) => props.onSet(event.target.value.trim())}
                onKeyDown={(event) => {
                    if (event.key === "Enter") props.onSet(event.currentTarget.value.trim());
                }}
            />
        </label>
    );
}
