// The terminal writes style elements and style attributes, which the content policy forbids. While one is open, what it would write there
// becomes style sheets and style properties, which scripts of ours may make.

let open = 0;

/** Until what is returned is called. */
export function allowStyles(): () => void {
    open += 1;
    Object.defineProperty(document, "createElement", { value: createElement, configurable: true });
    return () => {
        open -= 1;
        if (open === 0) Reflect.deleteProperty(document, "createElement");
    };
}

function createElement(tag: string, options?: ElementCreationOptions): HTMLElement {
    const create = (tag: string) => Document.prototype.createElement.call(document, tag, options);
    // A style element would be blocked as soon as it had content. What stands for it does nothing.
    return tag === "style" ? withSheet(create("template")) : withProperties(create(tag));
}

function withSheet(element: HTMLElement): HTMLElement {
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets.push(sheet);
    Object.defineProperty(element, "textContent", { set: (text: string) => sheet.replaceSync(text) });
    element.remove = () => {
        document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== sheet);
        Element.prototype.remove.call(element);
    };
    return element;
}

function withProperties(element: HTMLElement): HTMLElement {
    element.setAttribute = (name, value) => {
        if (name === "style") element.style.cssText = value;
        else Element.prototype.setAttribute.call(element, name, value);
    };
    return element;
}
