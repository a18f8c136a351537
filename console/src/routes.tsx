// Every page: where it is, who may see it, and its place in the menu. The one table.

import { type ComponentType, lazy, type LazyExoticComponent } from "react";

import type { Schemas } from "./api/client";
import { t } from "./text/en";
import type { IconName } from "./ui/icons";

type Role = Schemas["Role"];

export type Page = {
    path: string;
    roles: Role[];
    component: LazyExoticComponent<ComponentType>;
    /** None: it is reached from another page. */
    menu?: { title: string; icon: IconName };
};

const EVERYBODY: Role[] = ["admin", "operator", "tenant"];

export const pages: Page[] = [
    { path: "/", roles: EVERYBODY, component: lazy(() => import("./pages/home/Home")), menu: { title: t.nav.home, icon: "home" } },
    { path: "/devices", roles: EVERYBODY, component: lazy(() => import("./pages/devices/Devices")), menu: { title: t.nav.devices, icon: "devices" } },
    { path: "/devices/:id", roles: EVERYBODY, component: lazy(() => import("./pages/device/Device")) },
    { path: "/access", roles: EVERYBODY, component: lazy(() => import("./pages/access/Access")), menu: { title: t.nav.access, icon: "access" } },
    { path: "/access/new", roles: ["tenant"], component: lazy(() => import("./pages/grant/NewGrant")) },
    { path: "/sessions", roles: EVERYBODY, component: lazy(() => import("./pages/sessions/Sessions")), menu: { title: t.nav.sessions, icon: "sessions" } },
    { path: "/sessions/:id", roles: EVERYBODY, component: lazy(() => import("./pages/session/Session")) },
    { path: "/rollouts", roles: EVERYBODY, component: lazy(() => import("./pages/rollouts/Rollouts")), menu: { title: t.nav.rollouts, icon: "rollouts" } },
    { path: "/rollouts/:id", roles: EVERYBODY, component: lazy(() => import("./pages/rollouts/Rollout")) },
    { path: "/audit", roles: ["admin", "tenant"], component: lazy(() => import("./pages/audit/Audit")), menu: { title: t.nav.audit, icon: "audit" } },
    { path: "/network", roles: ["tenant"], component: lazy(() => import("./pages/network/Network")), menu: { title: t.nav.network, icon: "network" } },
    { path: "/nodes", roles: ["admin", "operator"], component: lazy(() => import("./pages/nodes/Nodes")), menu: { title: t.nav.nodes, icon: "nodes" } },
    { path: "/people", roles: ["admin", "tenant"], component: lazy(() => import("./pages/people/People")), menu: { title: t.nav.people, icon: "people" } },
    { path: "/notifications", roles: EVERYBODY, component: lazy(() => import("./pages/notifications/Notifications")), menu: { title: t.nav.notifications, icon: "notifications" } },
    { path: "/account", roles: EVERYBODY, component: lazy(() => import("./pages/account/Account")), menu: { title: t.nav.settings, icon: "settings" } },
];
