-- A key may be enrolled by several tenants: that somebody else has enrolled it is nobody's to learn. What it signs names the tenant.
alter table signing_keys drop constraint signing_keys_public_key_key;
alter table signing_keys add constraint signing_keys_public_key_key unique (tenant_id, public_key);
