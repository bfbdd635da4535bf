//! How we may prove who we are: `channel_binding` and `require_auth`.

/// `channel_binding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl ChannelBinding {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            _ => return None,
        })
    }
}

/// A way to prove who one is, as `require_auth` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    None,
    Password,
    Md5,
    Scram,
    /// One that we do not have.
    Other(&'static str),
}

impl Method {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "password" => Self::Password,
            "md5" => Self::Md5,
            "scram-sha-256" => Self::Scram,
            "gss" => Self::Other("gss"),
            "sspi" => Self::Other("sspi"),
            "oauth" => Self::Other("oauth"),
            _ => return None,
        })
    }
}

/// `require_auth`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RequireAuth {
    Any,
    Only(Vec<Method>),
    AllBut(Vec<Method>),
}

impl RequireAuth {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let items: Vec<_> = text.split(',').map(str::trim).collect();
        let negated = items.iter().all(|item| item.starts_with('!'));
        let methods = items.iter().map(|item| Method::parse(if negated { item.get(1..)? } else { item }));
        let methods: Vec<_> = methods.collect::<Option<_>>()?;
        let twice = methods
            .iter()
            .enumerate()
            .any(|(at, method)| methods.iter().skip(at.saturating_add(1)).any(|m| m == method));
        (!twice).then_some(if negated { Self::AllBut(methods) } else { Self::Only(methods) })
    }

    pub(super) fn allows(&self, method: Method) -> bool {
        match self {
            Self::Any => true,
            Self::Only(methods) => methods.contains(&method),
            Self::AllBut(methods) => !methods.contains(&method),
        }
    }
}
