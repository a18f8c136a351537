//! TLS and the key exchange inside a key's control channel, for both sides.

use aws_lc_rs::digest::{SHA256, digest};

use super::close::CloseReason;
use super::control::Which;
use super::data::DataKeys;
use super::key_material::{DATA_KEYS_LABEL, DYNAMIC_TLS_CRYPT_LABEL, KeyMaterial};
use super::key_method::{ClientSecret, ServerSecret};
use super::message::{MESSAGE_BYTES_MAX, messages};
use super::session::{Role, Session};
use super::static_key::StaticKey;
use super::tls::Tls;
use super::wrap::Wrap;

/// The longest key exchange message: its strings at their limits.
const KEY_EXCHANGE_BYTES_MAX: usize = 8192;

impl Session {
    /// Both resets are through: a client speaks first.
    pub(super) fn begin_exchange(&mut self, which: Which) -> Result<(), CloseReason> {
        let Role::Client(side) = &self.role else { return Ok(()) };
        let tls = Tls::client(&side.config.tls, &side.config.server_name).map_err(CloseReason::Tls)?;
        let key = self.key(which);
        key.tls.insert(tls).drain(&mut key.tls_out);
        Ok(())
    }

    /// Takes TLS bytes of the peer.
    pub(super) fn feed(&mut self, which: Which, payload: &[u8]) -> Result<(), CloseReason> {
        if self.key(which).tls.is_none() {
            let Role::Server(side) = &self.role else { return Err(CloseReason::Unexpected("TLS")) };
            let tls = Tls::server(&side.config.tls).map_err(CloseReason::Tls)?;
            self.key(which).tls = Some(tls);
        }
        let key = self.key(which);
        let Some(tls) = &mut key.tls else { return Ok(()) };
        let fed = tls.feed(payload);
        tls.drain(&mut key.tls_out);
        match fed {
            Ok(()) => self.tls_progressed(which),
            Err(rustls::Error::AlertReceived(alert)) => Err(CloseReason::PeerAlert(alert)),
            Err(error) => {
                // The peer is to hear what was wrong.
                self.leave(CloseReason::Tls(error), None);
                Ok(())
            }
        }
    }

    fn tls_progressed(&mut self, which: Which) -> Result<(), CloseReason> {
        let key = self.key(which);
        let is_done = key.tls.as_ref().is_some_and(|tls| !tls.is_handshaking());
        if is_done && !key.is_peer_checked {
            key.is_peer_checked = true;
            self.check_peer(which)?;
            if matches!(self.role, Role::Client(_)) {
                self.send_client_keys(which);
            }
        }
        while let Some(record) = self.key(which).tls.as_mut().and_then(Tls::take_record) {
            self.record(which, &record)?;
        }
        if self.key(which).tls.as_mut().is_some_and(Tls::has_peer_closed) {
            return Err(CloseReason::PeerEndedTls);
        }
        Ok(())
    }

    /// The TLS configuration is the owner's; that it does what it must is checked here once more.
    fn check_peer(&mut self, which: Which) -> Result<(), CloseReason> {
        let Some(tls) = self.key(which).tls.as_ref() else { return Ok(()) };
        let chain = tls.peer_chain().filter(|chain| !chain.is_empty() && tls.is_tls13()).ok_or(CloseReason::WeakTls)?;
        let leaf = chain.first().map_or(&[][..], |certificate| certificate.as_ref());
        let digest: [u8; 32] = digest(&SHA256, leaf).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if *self.pinned.get_or_insert(digest) == digest { Ok(()) } else { Err(CloseReason::CertificateChanged) }
    }

    fn record(&mut self, which: Which, record: &[u8]) -> Result<(), CloseReason> {
        if !self.key(which).has_peer_keys {
            if record.len() > KEY_EXCHANGE_BYTES_MAX {
                return Err(CloseReason::Message(record.len()));
            }
            return match &self.role {
                Role::Server(_) => self.client_keys_received(which, record),
                Role::Client(_) => self.server_keys_received(which, record),
            };
        }
        if record.len() > MESSAGE_BYTES_MAX {
            return Err(CloseReason::Message(record.len()));
        }
        // Nobody has a message before it has the other's keys.
        if matches!(self.role, Role::Server(_)) && !self.key(which).tls_out.is_empty() {
            return Err(CloseReason::Unexpected("message before the key exchange"));
        }
        for message in messages(record) {
            match &self.role {
                Role::Server(_) => self.server_message(&message)?,
                Role::Client(_) => self.client_message(message)?,
            }
        }
        Ok(())
    }

    /// Makes a key's data keys, once it is agreed how.
    pub(super) fn derive(
        &mut self,
        which: Which,
        client: &ClientSecret,
        server: &ServerSecret,
    ) -> Result<(), CloseReason> {
        let Some(agreed) = self.agreed else { return Ok(()) };
        let is_server = matches!(self.role, Role::Server(_));
        let material = if agreed.is_tls_ekm {
            KeyMaterial::new(self.export(which, DATA_KEYS_LABEL)?)
        } else {
            let peer_id = self.peer_id.ok_or(CloseReason::SessionId)?;
            let (client_id, server_id) = if is_server { (peer_id, self.own_id) } else { (self.own_id, peer_id) };
            KeyMaterial::from_prf(client, server, client_id, server_id)
        };
        let key = self.key(which);
        key.data = Some(Box::new(DataKeys::new(agreed.cipher, agreed.format, key.id, &material, is_server)));
        Ok(())
    }

    /// Control packets of later keys get a key of the first key's TLS around them, mixed with the static one if there is one.
    pub(super) fn derive_later_wrap(&mut self, static_key: Option<&StaticKey>, time: u32) -> Result<(), CloseReason> {
        let exported = self.export(Which::Current, DYNAMIC_TLS_CRYPT_LABEL)?;
        let key = static_key.map_or_else(|| StaticKey::from_bytes(exported), |key| key.xor(&exported));
        self.later_wrap = Some(Wrap::crypt(&key, matches!(self.role, Role::Server(_)), time));
        Ok(())
    }

    fn export(&mut self, which: Which, label: &[u8]) -> Result<[u8; 256], CloseReason> {
        let tls = self.key(which).tls.as_ref().ok_or(CloseReason::WeakTls)?;
        tls.export(label).map_err(CloseReason::Tls)
    }
}
