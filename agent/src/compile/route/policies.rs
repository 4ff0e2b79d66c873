//! Who may: what a `SecurityPolicy` asks for, ready to be asked.

use std::sync::Arc;

use http::HeaderName;
use sha2::{Digest, Sha256};
use snapshot::model::{self, Auth, Declared, ProviderKeys, Tokens};

use super::Compiler;
use crate::route::Gatekeeper;
use crate::route::cors::Cors;
use crate::route::credential::{KeyRing, Users};
use crate::route::gatekeeper::TokenCheck;
use crate::route::token::Provider;

impl Compiler<'_> {
    /// Rules of one policy share its gatekeeper.
    pub(super) fn gatekeeper(&mut self, auth: &Arc<Auth>) -> Arc<Gatekeeper> {
        // The snapshot holds every `Auth` as long as this compiler lives, so an address is one policy's.
        let policy = Arc::as_ptr(auth);
        if let Some(known) = self.gatekeepers.get(&policy) {
            return Arc::clone(known);
        }
        let keys = auth.api_keys.as_ref().and_then(|keys| {
            let ring = KeyRing::new(keys);
            if ring.is_none() {
                self.mistake(
                    &auth.declared,
                    "a client's name or its header is no header text",
                );
            }
            ring
        });
        let users = auth.users.as_ref().and_then(|users| {
            let users = Users::new(users);
            if users.is_none() {
                self.mistake(&auth.declared, "the users' header is no header");
            }
            users
        });
        let tokens = auth.tokens.as_ref().map(|tokens| self.tokens(tokens));
        let gatekeeper = Arc::new(Gatekeeper::new(auth, keys, users, tokens));
        self.gatekeepers.insert(policy, Arc::clone(&gatekeeper));
        gatekeeper
    }

    /// What a policy says of other origins. Its rules share it.
    pub(super) fn cors(
        &mut self,
        declared: &Declared,
        model: &Arc<model::Cors>,
    ) -> Option<Arc<Cors>> {
        // As above.
        let policy = Arc::as_ptr(model);
        if let Some(known) = self.cors.get(&policy) {
            return Some(Arc::clone(known));
        }
        match Cors::new(model) {
            Ok(cors) => {
                let cors = Arc::new(cors);
                self.cors.insert(policy, Arc::clone(&cors));
                Some(cors)
            }
            Err(error) => {
                self.mistake(declared, error);
                None
            }
        }
    }

    fn tokens(&mut self, tokens: &Tokens) -> TokenCheck {
        let mut providers = Vec::with_capacity(tokens.providers.len());
        let mut claim_headers = Vec::new();
        let mut asked = Sha256::new();
        for model in &tokens.providers {
            // Texts in this form are quoted, so no two providers give the same one.
            asked.update(format!(
                "{:?}",
                (
                    &model.name,
                    &model.issuer,
                    &model.audiences,
                    &model.algorithms,
                    &model.keys,
                    &model.places
                )
            ));
            if let ProviderKeys::Remote(remote) = &model.keys {
                self.remote_keys.insert(Arc::clone(remote));
            }
            for one in &model.claim_headers {
                match HeaderName::from_bytes(one.header.as_bytes()) {
                    Ok(header) => {
                        claim_headers.push((model.name.clone(), header, one.claim.clone()));
                    }
                    Err(error) => self.mistake(&model.declared, error),
                }
            }
            // Names of providers are unique in a snapshot only for those of the platform.
            let shared = self.snapshot.platform.jwt_providers.get(&model.name);
            let cached = shared.is_some_and(|shared| Arc::ptr_eq(shared, model));
            if cached && let Some(provider) = self.providers.get(&model.name) {
                providers.push(Arc::clone(provider));
                continue;
            }
            match Provider::new(model) {
                Ok(provider) => {
                    let provider = Arc::new(provider);
                    if cached {
                        self.providers
                            .insert(model.name.clone(), Arc::clone(&provider));
                    }
                    providers.push(provider);
                }
                Err(error) => {
                    self.mistake(&model.declared, format!("{:#}", anyhow::Error::new(error)));
                }
            }
        }
        TokenCheck {
            fingerprint: asked.finalize().into(),
            providers,
            leniency: tokens.leniency,
            claim_headers,
            recompute: tokens.providers.iter().any(|one| one.recompute_route),
        }
    }
}
