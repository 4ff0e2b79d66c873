//! Credentials of policies: out of the Secrets that they name. Nothing of a Secret gets into a message,
//! and keys are kept as digests only.
//!
//! A Secret that is not there, or holds something else, does not refuse the documents: it may come later,
//! as a certificate's renewal does. Until then the policy's rules answer 500, and let nobody pass.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use crate::document::Table;
use crate::document::secret::SecretDraft;
use crate::document::security_policy::{ApiKeyDraft, BasicDraft, PolicyDraft};
use crate::model::{ApiKeys, Auth, BasicUsers, ObjectName};
use crate::reader::Sink;
use crate::report::Source;

/// Key of the Secret that holds users (Envoy Gateway, `basicAuth.users`).
const HTPASSWD: &str = ".htpasswd";

/// What a policy asks for.
pub(super) fn auth(
    declared: Source,
    draft: &PolicyDraft,
    secrets: &Table<SecretDraft>,
    sink: &Sink,
) -> Auth {
    let mut closed = None;
    let mut close = |source: &Source, why: String| {
        sink.warning(
            source.clone(),
            format_args!("{why}; what the policy protects answers 500"),
        );
        closed.get_or_insert(why);
    };
    let api_keys = draft
        .api_keys
        .as_ref()
        .map(|draft| api_keys(draft, secrets, &mut close));
    let wanted = draft.users.as_ref();
    let users = wanted.map(|draft| users(draft, secrets, &mut close));
    Auth {
        declared,
        closed,
        cors: draft.cors.clone(),
        api_keys,
        users,
        tokens: draft.tokens.clone(),
        authorization: draft.authorization.clone(),
    }
}

fn values<'a>(
    name: &ObjectName,
    secrets: &'a Table<SecretDraft>,
) -> Result<&'a BTreeMap<String, Vec<u8>>, String> {
    match secrets.get(name) {
        Some((_, Some(secret))) => match &**secret {
            SecretDraft::Opaque(values) => Ok(values),
            SecretDraft::Tls { .. } => {
                Err(format!("`Secret` {name} is of another type than `Opaque`"))
            }
        },
        Some((_, None)) => Err(format!("`Secret` {name} has mistakes")),
        None => Err(format!("no `Secret` {name}")),
    }
}

fn api_keys(
    draft: &ApiKeyDraft,
    secrets: &Table<SecretDraft>,
    close: &mut impl FnMut(&Source, String),
) -> ApiKeys {
    let mut clients = BTreeMap::new();
    for (source, name) in &draft.secrets {
        match values(name, secrets) {
            Ok(values) => {
                for (client, key) in values {
                    // An empty key would be one that nobody has to know.
                    let key = key.trim_ascii();
                    if key.is_empty() {
                        close(source, format!("`Secret` {name} holds an empty key"));
                    } else if !client_name(client) {
                        close(
                            source,
                            format!("`Secret` {name} has a client whose name is no header text"),
                        );
                    } else if clients
                        .insert(Sha256::digest(key).into(), client.clone())
                        .is_some_and(|other| other != *client)
                    {
                        close(source, format!("`Secret` {name} gives two clients one key"));
                    }
                }
            }
            Err(why) => close(source, why),
        }
    }
    ApiKeys {
        places: draft.places.clone(),
        forward: draft.forward.clone(),
        sanitize: draft.sanitize,
        clients,
    }
}

fn users(
    draft: &BasicDraft,
    secrets: &Table<SecretDraft>,
    close: &mut impl FnMut(&Source, String),
) -> BasicUsers {
    let mut passwords = BTreeMap::new();
    let name = &draft.secret;
    let file = values(name, secrets).and_then(|values| {
        let bytes = values
            .get(HTPASSWD)
            .ok_or_else(|| format!("`Secret` {name} has no key `{HTPASSWD}`"))?;
        std::str::from_utf8(bytes)
            .map_err(|_| format!("`{HTPASSWD}` of `Secret` {name} is not text"))
    });
    match file {
        Ok(file) => {
            for (index, line) in file.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                match entry(line) {
                    Some((user, digest)) if !passwords.contains_key(user) => {
                        passwords.insert(user.to_owned(), digest);
                    }
                    Some(_) => close(
                        &draft.source,
                        format!(
                            "line {} of `{HTPASSWD}` of `Secret` {name} repeats a user",
                            index + 1
                        ),
                    ),
                    None => close(
                        &draft.source,
                        format!(
                            "line {} of `{HTPASSWD}` of `Secret` {name} is not `user:{{SHA}}digest`; other hashes are not supported",
                            index + 1
                        ),
                    ),
                }
            }
        }
        Err(why) => close(&draft.source, why),
    }
    BasicUsers {
        forward: draft.forward.clone(),
        passwords,
    }
}

/// `user:{SHA}` and the password's SHA-1 in base64, as `htpasswd -s` writes it.
fn entry(line: &str) -> Option<(&str, [u8; 20])> {
    let (user, hash) = line.split_once(':')?;
    let digest = BASE64.decode(hash.strip_prefix("{SHA}")?.as_bytes()).ok()?;
    client_name(user).then_some((user, digest.try_into().ok()?))
}

/// Names that a header can tell.
fn client_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::entry;

    #[test]
    fn users_are_lines_of_sha() {
        // `printf password | openssl dgst -sha1 -binary | base64`
        let line = "ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=";
        let (user, digest) = entry(line).expect("a user");
        assert_eq!((user, digest[0], digest[19]), ("ann", 0x5b, 0xd8));
        for line in [
            "ann",
            "ann:",
            ":{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "ann:{SHA}W6ph",
            "ann:$apr1$x$y",
            "ann:$2y$05$abcdefghijklmnopqrstuv",
            "ann:W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "a\u{e4}n:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        ] {
            assert!(entry(line).is_none(), "{line}");
        }
    }
}
