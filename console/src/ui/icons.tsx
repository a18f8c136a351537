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
    sessions: icon(
        <>
            <rect x="2.5" y="3.5" width="15" height="13" rx="1.6" />
            <path d="m5.8 7.4 2.8 2.6-2.8 2.6M10.4 12.8h3.8" strokeLinecap="round" strokeLinejoin="round" />
        </>,
    ),
    rollouts: icon(
        <>
            <path d="M10 2.8v9.4M6.6 6.2 10 2.8l3.4 3.4" strokeLinecap="round" strokeLinejoin="round" />
            <path d="M3.2 11.6v4.2h13.6v-4.2" strokeLinejoin="round" />
        </>,
    ),
    audit: icon(
        <>
            <path d="M4.5 2.8h8l3 3v11.4h-11z" strokeLinejoin="round" />
            <path d="M7.4 8.4h5.2M7.4 11.2h5.2M7.4 14h3" strokeLinecap="round" />
        </>,
    ),
    network: icon(
        <>
            <circle cx="10" cy="10" r="7.2" />
            <path d="M2.8 10h14.4M10 2.8c4.4 4.4 4.4 10 0 14.4M10 2.8c-4.4 4.4-4.4 10 0 14.4" />
        </>,
    ),
    nodes: icon(
        <>
            <circle cx="10" cy="4.6" r="2" />
            <circle cx="4.6" cy="14.6" r="2" />
            <circle cx="15.4" cy="14.6" r="2" />
            <path d="M9 6.4 5.6 12.8M11 6.4l3.4 6.4M6.6 14.6h6.8" />
        </>,
    ),
    notifications: icon(<path d="M4 14.4h12l-1.6-2.2V8.6a4.4 4.4 0 0 0-8.8 0v3.6zM8.4 14.6a1.7 1.7 0 0 0 3.2 0" strokeLinejoin="round" />),
    settings: icon(
        <>
            <circle cx="10" cy="7" r="3" />
            <path d="M3.8 17c.5-3.4 2.8-5.2 6.2-5.2s5.7 1.8 6.2 5.2" strokeLinecap="round" />
        </>,
    ),
};
export type IconName = keyof typeof icons;
