//! Tunnels: OpenVPN sessions of devices, and the interface that carries their packets.

mod conn;
pub mod plane;
pub mod slice;
