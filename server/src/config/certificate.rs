use super::section::section;

const DEVICE_DAYS: u32 = 90;
const SERVER_DAYS: u32 = 365;
const SERVER_REISSUE_DAYS: u32 = 30;
const CA_DAYS: u32 = 7_300;

section! {
    /// Certificates that this server issues.
    pub struct Certificate in "certificate" {
        /// How long a device certificate is valid. Devices renew theirs after two thirds of it; a device that is switched
        /// off for longer than the rest must be enrolled again.
        device_days: u32 = DEVICE_DAYS, in 1..=3_650;
        /// How long the server's certificate is valid.
        server_days: u32 = SERVER_DAYS, in 2..=825;
        /// The server's certificate is made anew when it has less than this left. Must be below `server_days`.
        server_reissue_days: u32 = SERVER_REISSUE_DAYS, in 1..=365;
        /// How long the fleet CA is valid. Used by `pki init` only.
        ca_days: u32 = CA_DAYS, in 365..=18_250;
    }
}
