//! The agent against a server of the link protocol, over real sockets.

#[cfg(test)]
mod client;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod enrollment;
#[cfg(test)]
mod file;
#[cfg(test)]
mod forward;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod server;
#[cfg(test)]
mod session;
#[cfg(test)]
mod signed;
#[cfg(test)]
mod stream;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod tunnel;
