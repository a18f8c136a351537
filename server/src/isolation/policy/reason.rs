/// Why the kernel lets a packet go no further. Each has a counter in the table, and is a value of the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Out of a tunnel: part of a packet. None is ever needed, and the rest of it would hide what it is.
    Fragment,
    /// Out of a tunnel: IPv4 options, such as source routes, or IPv6 extension headers.
    Options,
    /// Out of a tunnel: from or to a link-local address.
    LinkLocal,
    /// Out of a tunnel: to everybody who listens.
    Multicast,
    /// Out of a tunnel: to every host.
    Broadcast,
    /// Out of a tunnel: from an address that no device of this node has.
    Source,
    /// Out of a tunnel: to anything but the node's address in tunnels.
    Destination,
    /// From or to a device in quarantine: anything but its link.
    Quarantine,
    /// Out of a tunnel: more pings than are answered.
    EchoRate,
    /// Out of a tunnel: TCP or UDP, but neither to the link's port nor from one that is open for support.
    Port,
    /// Out of a tunnel: another protocol.
    Protocol,
    /// Not out of a tunnel, but with an address of tunnels.
    Outside,
    /// Out of a tunnel, and no part of a connection that this node has begun.
    Input,
    /// To a tunnel: neither the link's, nor a ping, nor to a port that is open for support.
    Out,
    /// Out of a tunnel: it would have been forwarded.
    ForwardFrom,
    /// To a tunnel: it would have been forwarded.
    ForwardTo,
    /// Neither from nor to a tunnel: this host forwards nothing at all (isolation.scope).
    Forward,
}

impl Reason {
    /// Every reason there is.
    pub(crate) const ALL: [Self; 17] = [
        Self::Fragment,
        Self::Options,
        Self::LinkLocal,
        Self::Multicast,
        Self::Broadcast,
        Self::Source,
        Self::Destination,
        Self::Quarantine,
        Self::EchoRate,
        Self::Port,
        Self::Protocol,
        Self::Outside,
        Self::Input,
        Self::Out,
        Self::ForwardFrom,
        Self::ForwardTo,
        Self::Forward,
    ];

    /// The label's value.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::LinkLocal => "link_local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Quarantine => "quarantine",
            Self::EchoRate => "echo_rate",
            Self::Port => "port",
            Self::Protocol => "protocol",
            Self::Outside => "outside",
            Self::Input => "input",
            Self::Out => "out",
            Self::ForwardFrom => "forward_from",
            Self::ForwardTo => "forward_to",
            Self::Forward => "forward",
        }
    }

    /// The counter in the table.
    pub(in crate::isolation) fn counter(self) -> String {
        format!("cl_drop_{}", self.label())
    }

    /// The reason that a counter of the table counts.
    pub(in crate::isolation) fn of_counter(name: &str) -> Option<Self> {
        let label = name.strip_prefix("cl_drop_")?;
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }

    /// Whether the driver lets no packet through that this is about: then something came to the kernel around it.
    pub(in crate::isolation) const fn is_behind_driver(self) -> bool {
        match self {
            Self::Fragment
            | Self::Options
            | Self::LinkLocal
            | Self::Multicast
            | Self::Broadcast
            | Self::Source
            | Self::Destination
            | Self::Protocol
            | Self::ForwardFrom => true,
            // The rate of pings is the kernel's alone; openings and quarantines do not begin and end at the same moment in both.
            Self::Quarantine
            | Self::Port
            | Self::EchoRate
            | Self::Input
            | Self::Outside
            | Self::Out
            | Self::ForwardTo
            | Self::Forward => false,
        }
    }
}
