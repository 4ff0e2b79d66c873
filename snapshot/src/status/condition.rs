//! Conditions and their reasons, by the names that the Gateway API has for them.

use std::fmt;

/// One condition. Which values of `reason` go with which `kind` is the Gateway API's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub holds: bool,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

impl Condition {
    /// One that holds.
    pub(crate) fn holds(kind: ConditionKind, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind,
            holds: true,
            reason,
            message: message.into(),
        }
    }

    /// One that does not.
    pub(crate) fn fails(kind: ConditionKind, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind,
            holds: false,
            reason,
            message: message.into(),
        }
    }
}

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $word:ident),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $word),*
        }

        impl $name {
            /// As the Gateway API spells it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => stringify!($word)),*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a condition is about.
    ConditionKind {
        /// Valid, and allowed to be where it is.
        Accepted,
        /// In the snapshot.
        Programmed,
        /// All references lead somewhere and are permitted.
        ResolvedRefs,
        /// Cannot be told from another listener.
        Conflicted,
        /// Some rules of a route answer 500 only, as they have mistakes.
        PartiallyInvalid,
        /// Clients without a good certificate get through.
        InsecureFrontendValidationMode,
        /// The policy's effect is taken by more specific ones, in part or wholly (Envoy Gateway).
        Overridden,
        /// The policy has something that is without effect (Envoy Gateway).
        Warning,
    }
}

words! {
    /// Why a condition is as it is.
    Reason {
        /// Valid.
        Accepted,
        /// In the snapshot.
        Programmed,
        /// All references lead somewhere.
        ResolvedRefs,
        /// Mistakes.
        Invalid,
        /// Some listeners are not valid.
        ListenersNotValid,
        /// `spec.infrastructure.parametersRef` or `spec.parametersRef` says what nobody here reads.
        InvalidParameters,
        /// A kind of address that is not supported.
        UnsupportedAddress,
        /// There is no address to give.
        AddressNotAssigned,
        /// The address cannot be had.
        AddressNotUsable,
        /// The certificate for backends cannot be used.
        InvalidClientCertificateRef,
        /// A reference into another namespace without a `ReferenceGrant`.
        RefNotPermitted,
        /// Not every client is checked.
        ConfigurationChanged,
        /// Another listener has the same host, port and protocol.
        HostnameConflict,
        /// Another listener has the same port for another protocol.
        ProtocolConflict,
        /// Nothing is in conflict.
        NoConflicts,
        /// The port is taken.
        PortUnavailable,
        /// The protocol of a listener, or of a backend, is not supported.
        UnsupportedProtocol,
        /// A value is not supported.
        UnsupportedValue,
        /// No certificate of an authority can be used.
        NoValidCACertificate,
        /// A certificate cannot be used.
        InvalidCertificateRef,
        /// A kind of route that the listener cannot take.
        InvalidRouteKinds,
        /// A certificate of an authority cannot be used.
        InvalidCACertificateRef,
        /// A kind that holds no certificates of authorities.
        InvalidCACertificateKind,
        /// The gateway takes no sets of listeners from there.
        NotAllowed,
        /// The gateway is not accepted.
        ParentNotAccepted,
        /// The gateway is not programmed.
        ParentNotProgrammed,
        /// No listener takes such a route.
        NotAllowedByListeners,
        /// No listener has one of the route's hosts.
        NoMatchingListenerHostname,
        /// No listener has the name or port.
        NoMatchingParent,
        /// Filters of a rule contradict each other.
        IncompatibleFilters,
        /// Backends are of a kind that is not supported.
        InvalidKind,
        /// A backend is not there.
        BackendNotFound,
        /// A filter is not there.
        InvalidFilter,
        /// Another policy has the target.
        Conflicted,
        /// What a policy is for is not there.
        TargetNotFound,
        /// More specific policies took the place.
        Overridden,
    }
}
