-- Which devices of a tenant were put into quarantine on a day: the devices themselves only say which are now.
create index audit_quarantines on audit (tenant_id, at) where action = 'device.quarantined';
