//! Certificates and token keys, made anew for each world: none is ever in the repository.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

/// Name of the token key.
const KEY_ID: &str = "demo-key";
/// How long tokens are good for.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// An authority for certificates and a key for tokens.
pub struct Secrets {
    authority: CertifiedIssuer<'static, KeyPair>,
    tokens: KeyPair,
    dir: PathBuf,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// A certificate with its key, in files and in memory.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

impl Secrets {
    /// Makes the authority, whose certificate is [`Self::ca`], and the token key.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Cardinal demo authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let secrets = Self {
            authority,
            tokens: KeyPair::generate()?,
            dir: dir.to_owned(),
        };
        fs::write(secrets.ca(), secrets.authority.pem())?;
        Ok(secrets)
    }

    /// The authority's certificate, for clients.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for names, in files `<name>.pem` and `<name>.key`.
    ///
    /// # Errors
    /// A name is no DNS name, or the folder cannot be written.
    pub fn certify(&self, name: &str, hosts: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.authority)?;
        let identity = Identity {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        fs::write(&identity.cert, certificate.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }

    /// A document `Secret` with a certificate for names.
    ///
    /// # Errors
    /// As [`Self::certify`].
    pub fn secret(&self, name: &str, namespace: &str, hosts: &[&str]) -> Result<Value> {
        let identity = self.certify(name, hosts)?;
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": fs::read_to_string(identity.cert)?, "tls.key": fs::read_to_string(identity.key)?},
        }))
    }

    /// The public half of the token key as a JWK set (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> String {
        // An uncompressed point: 4, then x and y of 32 bytes each (SEC 1, section 2.3.3).
        let point = self.tokens.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID,
            "x": BASE64URL_NOPAD.encode(x), "y": BASE64URL_NOPAD.encode(y),
        }]})
        .to_string()
    }

    /// Puts the public half of the token key into a document, where it has an empty set.
    ///
    /// # Errors
    /// The document has no empty set, or cannot be written.
    pub fn publish_key(&self, document: &Path) -> Result<()> {
        const NO_KEYS: &str = r#"{"keys": []}"#;

        let text = fs::read_to_string(document)
            .with_context(|| format!("failed to read {}", document.display()))?;
        ensure!(
            text.contains(NO_KEYS),
            "{} has no place for the token key",
            document.display()
        );
        fs::write(document, text.replace(NO_KEYS, &self.jwks()))
            .with_context(|| format!("failed to write {}", document.display()))
    }

    /// A token with these scopes, good for an hour.
    ///
    /// # Errors
    /// The clock is before 1970.
    pub fn token(&self, issuer: &str, audience: &str, scopes: &str) -> Result<String> {
        let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + TOKEN_LIFE;
        let header = Header {
            kid: Some(KEY_ID.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        let claims = json!({"iss": issuer, "aud": audience, "sub": "demo", "scope": scopes, "exp": expires.as_secs()});
        let key = EncodingKey::from_ec_pem(self.tokens.serialize_pem().as_bytes())
            .context("the token key is not readable")?;
        Ok(jsonwebtoken::encode(&header, &claims, &key)?)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};

    use super::*;

    #[test]
    fn tokens_verify_with_the_published_key() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("cardinal-secrets-{}", std::process::id()));
        let secrets = Secrets::make(&dir)?;
        let token = secrets.token("https://issuer.test", "shop", "read:books")?;
        let keys: JwkSet = serde_json::from_str(&secrets.jwks())?;
        let key = DecodingKey::from_jwk(keys.find(KEY_ID).context("the key is not in the set")?)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["shop"]);
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &validation)?.claims;
        assert_eq!(claims["scope"], "read:books");
        assert!(
            secrets.secret("edge", "default", &["*.example.test"])?["stringData"]["tls.key"]
                .is_string()
        );
        fs::remove_dir_all(dir)?;
        Ok(())
    }
}
