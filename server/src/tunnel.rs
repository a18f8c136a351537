//! Tunnels: OpenVPN sessions of devices, and the interface that carries their packets.

pub mod slice;
