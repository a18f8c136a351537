// Drawn for this console, 20 px, in the colour of the text.

import type { ReactNode } from "react";

function icon(drawing: ReactNode) {
    return (
        <svg width="20" height="20" viewBox="0 0 20 20" fill="none" stroke="currentColor" strokeWidth="1.6" aria-hidden>
            {drawing}
        </svg>
    );
}

export const icons = {
    home: icon(<path d="M3.5 9 10 3.5 16.5 9v7.5h-4.6v-4.6H8.1v4.6H3.5z" strokeLinejoin="round" />),
    devices: icon(
        <>
            <rect x="3" y="3.5" width="14" height="5.4" rx="1.4" />
            <rect x="3" y="11.1" width="14" height="5.4" rx="1.4" />
            <path d="M6 6.2h.01M6 13.8h.01M9 6.2h5M9 13.8h5" strokeLinecap="round" />
        </>,
    ),
    access: icon(
        <>
            <circle cx="6.6" cy="10" r="3.4" />
            <path d="M10 10h7v3M14 10v2.4" strokeLinecap="round" strokeLinejoin="round" />
        </>,
    ),
    people: icon(
        <>
            <circle cx="7.5" cy="7" r="2.8" />
            <path d="M2.5 16.5c.4-3 2.3-4.6 5-4.6s4.6 1.6 5 4.6M13 4.6a2.6 2.6 0 0 1 0 5M14.6 12.2c1.7.6 2.7 2 2.9 4.3" strokeLinecap="round" />
        </>,
    ),
    settings: icon(
        <>
            <circle cx="10" cy="7" r="3" />
            <path d="M3.8 17c.5-3.4 2.8-5.2 6.2-5.2s5.7 1.8 6.2 5.2" strokeLinecap="round" />
        </>,
    ),
};
export type IconName = keyof typeof icons;
