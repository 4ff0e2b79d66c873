//! Why something failed, in one line.

use std::error::Error;

/// Why the cluster cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nobody says where the API server is. What `kube` says of it has its causes inside already.
    #[error(
        "no API server is configured; expected a kubeconfig (KUBECONFIG) or a pod with a service account: {0}"
    )]
    Config(kube::config::InferConfigError),
    /// The client cannot be made of the configuration.
    #[error("the configuration of the API server cannot be used")]
    Client(#[source] Box<dyn Error + Send + Sync>),
}

/// An error with its causes. `kube` repeats its source in its own message.
pub(crate) fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!(
                "the API server answered {}: {}",
                status.code, status.message
            )
        }
        other => {
            let mut cause: &dyn Error = other;
            while let Some(source) = cause.source() {
                cause = source;
            }
            cause.to_string()
        }
    }
}

/// What was heard instead of what was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Unheard {
    /// In words.
    pub(crate) error: String,
    /// The API server itself said so.
    pub(crate) answered: bool,
}

impl Unheard {
    /// It refused, or has not what was asked for.
    pub(crate) fn refusal(error: String) -> Self {
        Self {
            error,
            answered: true,
        }
    }

    /// It said nothing.
    pub(crate) fn silence(error: String) -> Self {
        Self {
            error,
            answered: false,
        }
    }
}

impl From<&kube::Error> for Unheard {
    fn from(error: &kube::Error) -> Self {
        Self {
            error: explain(error),
            // What is wrong with the answer, or before anybody is asked, tells nothing of where the API server is.
            answered: matches!(
                error,
                kube::Error::Api(_)
                    | kube::Error::SerdeError(_)
                    | kube::Error::BuildRequest(_)
                    | kube::Error::Auth(_)
            ),
        }
    }
}
