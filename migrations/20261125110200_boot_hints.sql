-- What a device said, when it was first seen in a boot, of how the boot before had ended. Null: nothing.
alter table device_boots add column hint text check (hint in ('local', 'power_loss', 'watchdog'));
