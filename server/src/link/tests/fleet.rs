//! A tenant with a user, an operator, and as many devices as a test wants.

use cloudlink_certs::{Authority, CertificateRequest, PrivateKey, Validity, create_request};
use cloudlink_proto::ids::{CommandId, DeviceId};
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use uuid::Uuid;

use super::peer::{Credentials, new_key};
use super::{Port, clock, identity, new_serial};
use crate::bus::Hint;

pub(super) struct Fleet {
    pub(super) tenant: Uuid,
    pub(super) user: Uuid,
    pub(super) operator: Uuid,
}

/// A device of the fleet, with a certificate that the database knows.
pub(super) struct Gateway {
    pub(super) id: Uuid,
    pub(super) serial: String,
    pub(super) credentials: Credentials,
}

impl Gateway {
    pub(super) fn device_id(&self) -> DeviceId {
        DeviceId::from_uuid(self.id)
    }
}

/// What is wrong with a certificate, if anything.
pub(super) struct Issue<'a> {
    pub(super) authority: &'a Authority,
    pub(super) validity: Validity,
    pub(super) is_known: bool,
}

impl Fleet {
    pub(super) async fn new(port: &Port) -> Self {
        let fleet = Self { tenant: Uuid::now_v7(), user: Uuid::now_v7(), operator: Uuid::now_v7() };
        let Self { tenant, user, operator } = &fleet;
        port.run(&format!(
            "insert into tenants (id, name) values ('{tenant}', 'tenant {tenant}');
             insert into people (id, name, role, tenant_id)
             values ('{user}', 'user {user}', 'tenant', '{tenant}'), ('{operator}', 'operator {operator}', 'operator', null)"
        ))
        .await;
        fleet
    }

    pub(super) async fn device(&self, port: &Port) -> Gateway {
        let validity = Validity::starting_at(clock::now(), time::Duration::days(90)).unwrap();
        self.device_with(port, Issue { authority: &port.authority, validity, is_known: true }).await
    }

    pub(super) async fn device_with(&self, port: &Port, issue: Issue<'_>) -> Gateway {
        let id = Uuid::now_v7();
        let tenant = self.tenant;
        port.run(&format!("insert into devices (id, tenant_id, name) values ('{id}', '{tenant}', 'device {id}')"))
            .await;
        let (serial, credentials) = self.certificate(port, id, issue).await;
        Gateway { id, serial, credentials }
    }

    /// One more certificate of a device, as a renewal would give.
    pub(super) async fn certificate(&self, port: &Port, device: Uuid, issue: Issue<'_>) -> (String, Credentials) {
        let (key, serial) = (new_key(), new_serial());
        let certificate =
            issue.authority.issue_device(&request(&key), &identity(self, device), serial, issue.validity).unwrap();
        let hex = HEXLOWER.encode(serial.as_bytes());
        if issue.is_known {
            self.record(port, device, &hex, &certificate).await;
        }
        (hex, Credentials::new(port, &certificate, &key))
    }

    async fn record(&self, port: &Port, device: Uuid, serial: &str, certificate: &CertificateDer<'_>) {
        let (tenant, der) = (self.tenant, HEXLOWER.encode(certificate));
        port.run(&format!(
            "insert into certificates (serial, device_id, tenant_id, key_hash, der, not_after)
             values ('\\x{serial}', '{device}', '{tenant}', sha256('\\x{der}'), '\\x{der}', now() + interval '90 days')"
        ))
        .await;
    }

    /// A grant of everything on one device, from now on for so long.
    pub(super) async fn grant(&self, port: &Port, device: Uuid, seconds: u32) -> Uuid {
        let id = Uuid::now_v7();
        let Self { tenant, user, .. } = self;
        port.run(&format!(
            "insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at)
             values ('{id}', '{tenant}', '{user}', 'test', '{{metrics:read,service:restart,device:reboot,device:shutdown}}',
                     '{{{device}}}', clock_timestamp(), clock_timestamp() + interval '{seconds} seconds')"
        ))
        .await;
        id
    }

    /// A command, made as the API makes it, with its hint.
    pub(super) async fn command(&self, port: &Port, device: Uuid, kind: &str, arguments: Value) -> CommandId {
        self.command_within(port, device, kind, arguments, 600).await
    }

    pub(super) async fn command_within(
        &self,
        port: &Port,
        device: Uuid,
        kind: &str,
        arguments: Value,
        start_within_seconds: u32,
    ) -> CommandId {
        let id = self.insert(port, device, kind, arguments, start_within_seconds).await;
        port.bus.send(Hint::CommandsDue(DeviceId::from_uuid(device)));
        id
    }

    pub(super) async fn command_without_hint(
        &self,
        port: &Port,
        device: Uuid,
        kind: &str,
        arguments: Value,
    ) -> CommandId {
        self.insert(port, device, kind, arguments, 600).await
    }

    async fn insert(
        &self,
        port: &Port,
        device: Uuid,
        kind: &str,
        arguments: Value,
        start_within_seconds: u32,
    ) -> CommandId {
        let id = Uuid::now_v7();
        let kind = crate::model::command::Instruction::kind_named(kind).unwrap();
        let made: i64 = sqlx::query_scalar(
            "select count(*) from command_create($1, $2, $3, null, $4, $5, $6, 'test', make_interval(secs => $7), $8, true,
                                                 null, sha256('request'), null, $9, $10, false)",
        )
        .bind(id)
        .bind(self.operator)
        .bind(device)
        .bind(kind.scope)
        .bind(kind.name)
        .bind(arguments)
        .bind(f64::from(start_within_seconds))
        .bind(i32::try_from(kind.run_within.as_secs()).unwrap())
        .bind(kind.by_polling)
        .bind(kind.disturbs)
        .fetch_one(&port.database)
        .await
        .unwrap();
        assert_eq!(made, 1, "no grant allows it");
        CommandId::from_uuid(id)
    }
}

pub(super) fn request(key: &PrivateKey) -> CertificateRequest {
    CertificateRequest::from_der(&create_request(key).unwrap()).unwrap()
}
