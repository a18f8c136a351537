-- The server's own role keeps to its own rights. As a member of cloudlink_tenant it may take that role for one transaction; without
-- doing so it has nothing of it: rights and row-level policies of two roles add up, so that neither would be a wall.
--
-- Before Postgres 16 inheriting is a property of the member, since then of each membership. Roles belong to the whole cluster, so
-- two databases may be migrated at once: losing that race is not an error.
do $$
declare
    v_grantor name;
begin
    if not pg_has_role('cloudlink_app', 'cloudlink_tenant', 'usage') then
        return;
    elsif current_setting('server_version_num')::integer < 160000 then
        alter role cloudlink_app noinherit;
        return;
    end if;
    for v_grantor in
        select g.rolname from pg_auth_members m join pg_roles g on g.oid = m.grantor
         where m.member = 'cloudlink_app'::regrole and m.roleid = 'cloudlink_tenant'::regrole
    loop
        execute format('grant cloudlink_tenant to cloudlink_app with inherit false, set true granted by %I', v_grantor);
    end loop;
exception when internal_error then null;
end $$;

do $$
begin
    if pg_has_role('cloudlink_app', 'cloudlink_tenant', 'usage') then
        raise exception 'cloudlink_app inherits the rights of cloudlink_tenant'
            using hint = 'As a superuser: alter role cloudlink_app noinherit (Postgres 15), '
                         'or grant cloudlink_tenant to cloudlink_app with inherit false (newer).';
    end if;
end $$;
