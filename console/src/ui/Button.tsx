import { Button as Base, type ButtonProps } from "react-aria-components";
import { Link, type LinkProps } from "react-router";

import css from "./ui.module.css";

type Look = { look?: "plain" | "primary" | "danger"; large?: boolean };

function classes({ look = "plain", large = false }: Look): string {
    return [css.button, look === "plain" ? "" : css[look], large ? css.large : ""].filter(Boolean).join(" ");
}

export function Button({ look, large, ...rest }: Omit<ButtonProps, "className"> & Look) {
    return <Base {...rest} className={classes({ ...(look && { look }), ...(large && { large }) })} />;
}

/** Goes somewhere, and looks like what does something. */
export function ButtonLink({ look, large, ...rest }: Omit<LinkProps, "className"> & Look) {
    return <Link {...rest} className={classes({ ...(look && { look }), ...(large && { large }) })} />;
}
