-- When a node carried tunnels of a tenant on a day, in whole minutes: how long nothing was proven counts only then. Spans that
-- touch are one, so there are at most 720 of them.
alter table tunnel_days add column spans tstzmultirange not null check (not isempty(spans));
