-- Lists are newest first, page by page: (time, id) is the position.
create index devices_enrolled on devices (enrolled_at desc, id desc);
create index devices_tenant_enrolled on devices (tenant_id, enrolled_at desc, id desc);
create index grants_created on grants (created_at desc, id desc);
create index commands_device_created on commands (device_id, created_at desc, id desc);
create index commands_grant_created on commands (grant_id, created_at desc, id desc);
