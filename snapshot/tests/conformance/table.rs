//! What the suite waits for, test by test.

/// What a listener without faults says behind the number of its routes and their kinds.
pub(super) const GOOD: &str =
    "+Accepted=Accepted -Conflicted=NoConflicts +ResolvedRefs=ResolvedRefs +Programmed=Programmed";

/// Tests of the suite by name, and lines that the report must have; `GOOD` stands for the constant above.
pub(super) const TABLE: &[(&str, &[&str])] = &[
    (
        "backendtlspolicy-conflict-resolution",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute backendtlspolicy-conflict-resolution -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy conflicted-with-section-name-1 -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy conflicted-with-section-name-2 -> same-namespace -Accepted=Conflicted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy conflicted-without-section-name-1 -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy conflicted-without-section-name-2 -> same-namespace -Accepted=Conflicted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy not-conflicted-with-section-name -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy not-conflicted-without-section-name -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "backendtlspolicy-invalid-ca-certificate-ref",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute backendtlspolicy-invalid-ca-certificate-ref -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy malformed-ca-certificate-ref -> same-namespace -Accepted=NoValidCACertificate -ResolvedRefs=InvalidCACertificateRef",
            "policy BackendTLSPolicy nonexistent-ca-certificate-ref -> same-namespace -Accepted=NoValidCACertificate -ResolvedRefs=InvalidCACertificateRef",
        ],
    ),
    (
        "backendtlspolicy-invalid-kind",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute backendtlspolicy-invalid-kind-test -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy invalid-kind -> same-namespace -Accepted=NoValidCACertificate -ResolvedRefs=InvalidKind",
        ],
    ),
    (
        "backendtlspolicy",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "listener same-namespace-with-https-listener/https 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute backendtlspolicy -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute backendtlspolicy-reencrypt -> same-namespace-with-https-listener +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy cert-mismatch -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy host-mismatch -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy normative-test -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy normative-test -> same-namespace-with-https-listener +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "policy BackendTLSPolicy reconcile-test -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "gateway-invalid-default-frontend-client-certificate-validation",
        &[
            "gateway invalid-default-client-validation-config +Accepted=Accepted +Programmed=Programmed",
            "listener invalid-default-client-validation-config/https 1 [HTTPRoute,GRPCRoute] -Accepted=NoValidCACertificate -Conflicted=NoConflicts -ResolvedRefs=InvalidCACertificateRef -Programmed=Invalid",
            "listener invalid-default-client-validation-config/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute invalid-default-client-validation-config -> invalid-default-client-validation-config +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "gateway-invalid-listeners-unsupported-protocol",
        &[
            "gateway gateway-only-unsupported-protocols -Accepted=ListenersNotValid -Programmed=Invalid",
            "listener gateway-only-unsupported-protocols/invalid 0 [] -Accepted=UnsupportedProtocol -Conflicted=NoConflicts +ResolvedRefs=ResolvedRefs -Programmed=Invalid",
            "gateway gateway-supported-and-unsupported-protocols +Accepted=ListenersNotValid +Programmed=Programmed",
            "listener gateway-supported-and-unsupported-protocols/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener gateway-supported-and-unsupported-protocols/invalid 0 [] -Accepted=UnsupportedProtocol -Conflicted=NoConflicts +ResolvedRefs=ResolvedRefs -Programmed=Invalid",
        ],
    ),
    (
        "gateway-invalid-parameters-ref",
        &[
            "gateway gateway-invalid-parameters-ref -Accepted=InvalidParameters -Programmed=Invalid",
            "listener gateway-invalid-parameters-ref/http 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts +ResolvedRefs=ResolvedRefs -Programmed=Invalid",
        ],
    ),
    (
        "gateway-invalid-route-kind",
        &[
            "gateway gateway-only-invalid-route-kind +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-only-invalid-route-kind/http 0 [] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidRouteKinds +Programmed=Programmed",
            "gateway gateway-supported-and-invalid-route-kind +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-supported-and-invalid-route-kind/http 0 [HTTPRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidRouteKinds +Programmed=Programmed",
        ],
    ),
    (
        "gateway-invalid-tls-backend-configuration",
        &[
            "gateway gateway-client-certificate-malformed-secret +Accepted=Accepted +Programmed=Programmed -ResolvedRefs=InvalidClientCertificateRef",
            "listener gateway-client-certificate-malformed-secret/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-client-certificate-missing-reference-grant +Accepted=Accepted +Programmed=Programmed -ResolvedRefs=RefNotPermitted",
            "listener gateway-client-certificate-missing-reference-grant/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-client-certificate-nonexistent-secret +Accepted=Accepted +Programmed=Programmed -ResolvedRefs=InvalidClientCertificateRef",
            "listener gateway-client-certificate-nonexistent-secret/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-client-certificate-unsupported-group +Accepted=Accepted +Programmed=Programmed -ResolvedRefs=InvalidClientCertificateRef",
            "listener gateway-client-certificate-unsupported-group/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-client-certificate-unsupported-kind +Accepted=Accepted +Programmed=Programmed -ResolvedRefs=InvalidClientCertificateRef",
            "listener gateway-client-certificate-unsupported-kind/http 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "gateway-invalid-tls-configuration",
        &[
            "gateway gateway-certificate-malformed-secret +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-certificate-malformed-secret/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidCertificateRef -Programmed=Invalid",
            "gateway gateway-certificate-nonexistent-secret +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-certificate-nonexistent-secret/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidCertificateRef -Programmed=Invalid",
            "gateway gateway-certificate-unsupported-group +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-certificate-unsupported-group/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidCertificateRef -Programmed=Invalid",
            "gateway gateway-certificate-unsupported-kind +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-certificate-unsupported-kind/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidCertificateRef -Programmed=Invalid",
        ],
    ),
    (
        "gateway-optional-address-value",
        &[
            "gateway gateway-without-address-value +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-without-address-value/http 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "gateway-secret-invalid-reference-grant",
        &[
            "gateway gateway-secret-invalid-reference-grant +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-secret-invalid-reference-grant/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=RefNotPermitted -Programmed=Invalid",
        ],
    ),
    (
        "gateway-secret-missing-reference-grant",
        &[
            "gateway gateway-secret-missing-reference-grant +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-secret-missing-reference-grant/https 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=RefNotPermitted -Programmed=Invalid",
        ],
    ),
    (
        "gateway-secret-reference-grant-all-in-namespace",
        &[
            "gateway gateway-secret-reference-grant-all-in-namespace +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-secret-reference-grant-all-in-namespace/https 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "gateway-secret-reference-grant-specific",
        &[
            "gateway gateway-secret-reference-grant-specific +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-secret-reference-grant-specific/https 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "gateway-with-attached-routes",
        &[
            "gateway gateway-with-one-attached-route +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-with-one-attached-route/http 1 [HTTPRoute] GOOD",
            "gateway gateway-with-two-attached-routes +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-with-two-attached-routes/http 2 [HTTPRoute] GOOD",
            "gateway unresolved-gateway-with-one-attached-unresolved-route +Accepted=Accepted +Programmed=Programmed",
            "listener unresolved-gateway-with-one-attached-unresolved-route/tls 1 [HTTPRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidCertificateRef -Programmed=Invalid",
            "route HTTPRoute http-route-1 -> gateway-with-one-attached-route +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute http-route-2 -> gateway-with-two-attached-routes +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute http-route-3 -> gateway-with-two-attached-routes +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute http-route-4 -> unresolved-gateway-with-one-attached-unresolved-route/tls +Accepted=Accepted -ResolvedRefs=BackendNotFound",
            "route HTTPRoute http-route-not-accepted -> gateway-with-two-attached-routes -Accepted=NoMatchingListenerHostname +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "gateway-with-clientcertificate-validation-insecure-fallback",
        &[
            "gateway client-validation-insecure-fallback +Accepted=Accepted +Programmed=Programmed +InsecureFrontendValidationMode=ConfigurationChanged",
            "listener client-validation-insecure-fallback/https 1 [HTTPRoute,GRPCRoute] GOOD",
            "listener client-validation-insecure-fallback/https-with-hostname 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute client-cert-validation-insecure-fallback-test -> client-validation-insecure-fallback +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute client-cert-validation-insecure-fallback-test-no-hostname -> client-validation-insecure-fallback/https-with-hostname +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "gateway-with-invalid-clientcertificate-validation",
        &[
            "gateway gateway-with-invalid-client-cert-validation +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-with-invalid-client-cert-validation/https 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener gateway-with-invalid-client-cert-validation/https-unresolved 0 [HTTPRoute,GRPCRoute] -Accepted=NoValidCACertificate -Conflicted=NoConflicts -ResolvedRefs=InvalidCACertificateRef -Programmed=Invalid",
            "listener gateway-with-invalid-client-cert-validation/https-invalid-kind 0 [HTTPRoute,GRPCRoute] -Accepted=NoValidCACertificate -Conflicted=NoConflicts -ResolvedRefs=InvalidCACertificateKind -Programmed=Invalid",
            "listener gateway-with-invalid-client-cert-validation/https-grant-missing 0 [HTTPRoute,GRPCRoute] -Accepted=NoValidCACertificate -Conflicted=NoConflicts -ResolvedRefs=RefNotPermitted -Programmed=Invalid",
        ],
    ),
    (
        "grpcroute-weight",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route GRPCRoute weighted-backends -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-backend-protocol-h2c",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute backend-protocol-h2c -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-cross-namespace",
        &[
            "listener backend-namespaces/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute cross-namespace -> backend-namespaces +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-disallowed-kind",
        &[
            "gateway tlsroutes-only +Accepted=Accepted +Programmed=Programmed",
            "listener tlsroutes-only/tls 0 [TLSRoute] GOOD",
            "route HTTPRoute disallowed-kind -> tlsroutes-only -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-hostname-intersection",
        &[
            "gateway httproute-hostname-intersection +Accepted=Accepted +Programmed=Programmed",
            "listener httproute-hostname-intersection/listener-1 2 [HTTPRoute,GRPCRoute] GOOD",
            "listener httproute-hostname-intersection/listener-2 1 [HTTPRoute,GRPCRoute] GOOD",
            "listener httproute-hostname-intersection/listener-3 1 [HTTPRoute,GRPCRoute] GOOD",
            "gateway httproute-hostname-intersection-all +Accepted=Accepted +Programmed=Programmed",
            "listener httproute-hostname-intersection-all/listener-1 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute httproute-hostname-intersection-all -> httproute-hostname-intersection-all +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute no-intersecting-hosts -> httproute-hostname-intersection -Accepted=NoMatchingListenerHostname +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute specific-host-matches-listener-specific-host -> httproute-hostname-intersection +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute specific-host-matches-listener-wildcard-host -> httproute-hostname-intersection +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute wildcard-host-matches-listener-specific-host -> httproute-hostname-intersection +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute wildcard-host-matches-listener-wildcard-host -> httproute-hostname-intersection +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-invalid-backendref-unknown-kind",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute invalid-backend-ref-unknown-kind -> same-namespace +Accepted=Accepted -ResolvedRefs=InvalidKind",
        ],
    ),
    (
        "httproute-invalid-cross-namespace-backend-ref",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute invalid-cross-namespace-backend-ref -> same-namespace +Accepted=Accepted -ResolvedRefs=RefNotPermitted",
        ],
    ),
    (
        "httproute-invalid-cross-namespace-parent-ref",
        &[
            "route HTTPRoute invalid-cross-namespace-parent-ref -> same-namespace -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-invalid-nonexistent-backendref",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute invalid-nonexistent-backend-ref -> same-namespace +Accepted=Accepted -ResolvedRefs=BackendNotFound",
        ],
    ),
    (
        "httproute-invalid-parentref-not-matching-listener-port",
        &[
            "route HTTPRoute httproute-listener-not-matching-route-port -> same-namespace:81 -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-invalid-parentref-not-matching-section-name",
        &[
            "route HTTPRoute httproute-listener-not-matching-section-name -> same-namespace/http1:80 -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-invalid-parentref-section-name-not-matching-port",
        &[
            "gateway gateway-with-one-not-matching-port-and-section-name-route +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-with-one-not-matching-port-and-section-name-route/http 0 [HTTPRoute] GOOD",
            "route HTTPRoute httproute-listener-section-name-not-matching-port -> gateway-with-one-not-matching-port-and-section-name-route/http:81 -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-invalid-reference-grant",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute reference-grant -> same-namespace +Accepted=Accepted -ResolvedRefs=RefNotPermitted",
        ],
    ),
    (
        "httproute-matching",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute matching -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-omitted-backendrefs",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute omitted-backendrefs -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-partially-invalid-via-invalid-reference-grant",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute invalid-reference-grant -> same-namespace +Accepted=Accepted -ResolvedRefs=RefNotPermitted",
        ],
    ),
    (
        "httproute-reference-grant",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute reference-grant -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-request-mirror",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute request-mirror -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-service-types",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute service-types -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-simple-same-namespace",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute gateway-conformance-infra-test -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "httproute-weight",
        &[
            "listener same-namespace/http 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute weighted-backends -> same-namespace +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "listenerset-allowed-namespace-none",
        &[
            "gateway gateway-does-not-allow-listenerset +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-does-not-allow-listenerset/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-not-allowed -Accepted=NotAllowed -Programmed=NotAllowed",
        ],
    ),
    (
        "listenerset-allowed-namespace-same",
        &[
            "gateway gateway-allows-listenerset-in-same-namespace +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-allows-listenerset-in-same-namespace 1",
            "listener gateway-allows-listenerset-in-same-namespace/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-in-different-namespace -Accepted=NotAllowed -Programmed=NotAllowed",
            "set listenerset-in-same-namespace +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-in-same-namespace/listenerset-in-same-namespace-listener 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "listenerset-allowed-namespace-selector",
        &[
            "gateway gateway-allows-listenerset-in-selected-namespace +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-allows-listenerset-in-selected-namespace 1",
            "listener gateway-allows-listenerset-in-selected-namespace/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-in-selected-namespace +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-in-selected-namespace/listenerset-in-selected-namespace-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-not-in-selected-namespace -Accepted=NotAllowed -Programmed=NotAllowed",
        ],
    ),
    (
        "listenerset-allowed-routes-namespaces",
        &[
            "gateway gateway-with-listener-sets-test-allowed-routes +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listener-sets-test-allowed-routes 2",
            "listener gateway-with-listener-sets-test-allowed-routes/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-test-allowed-routes-cross-ns +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-test-allowed-routes-cross-ns/listener-set-listener-allowed-routes-cross-ns-same 1 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-test-allowed-routes-namespaces +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-test-allowed-routes-namespaces/listener-set-listener-allowed-routes-all 3 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-test-allowed-routes-namespaces/listener-set-listener-allowed-routes-same 1 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-test-allowed-routes-namespaces/listener-set-listener-allowed-routes-selector 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute route-in-listenerset-namespace -> listenerset-test-allowed-routes-cross-ns +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-in-selected-namespace -> listenerset-test-allowed-routes-namespaces +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-not-in-selected-namespace -> listenerset-test-allowed-routes-namespaces +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-in-gateway-namespace -> listenerset-test-allowed-routes-cross-ns -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-in-same-namespace -> listenerset-test-allowed-routes-namespaces +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "listenerset-allowed-routes-supported-kinds",
        &[
            "gateway gateway-with-listener-sets-test-supported-route-kinds +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listener-sets-test-supported-route-kinds 1",
            "listener gateway-with-listener-sets-test-supported-route-kinds/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-test-allowed-routes-supported-kinds +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-test-allowed-routes-supported-kinds/listener-set-listener-allowed-routes-tls-only 0 [] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidRouteKinds +Programmed=Programmed",
        ],
    ),
    (
        "listenerset-default-not-allowed",
        &[
            "gateway gateway-default-does-not-allow-listenerset +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-default-does-not-allow-listenerset/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-default-not-allowed -Accepted=NotAllowed -Programmed=NotAllowed",
        ],
    ),
    (
        "listenerset-dual-parentref-independence",
        &[
            "gateway gateway-dual-parentref +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-dual-parentref 1",
            "listener gateway-dual-parentref/gw-dual-parentref-listener 1 [HTTPRoute,GRPCRoute] GOOD",
            "set ls-dual-parentref +Accepted=Accepted +Programmed=Programmed",
            "listener ls-dual-parentref/ls-dual-parentref-listener 2 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute route-dual-parentref-both -> gateway-dual-parentref +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-dual-parentref-both -> ls-dual-parentref +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-dual-parentref-one -> gateway-dual-parentref/ls-dual-parentref-listener -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-dual-parentref-one -> ls-dual-parentref/ls-dual-parentref-listener +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "listenerset-gateway-parent-section-name-not-found",
        &[
            "gateway gateway-section-name +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-section-name 1",
            "listener gateway-section-name/gw-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-section-name +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-section-name/ls-only-listener 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute route-via-gateway -> gateway-section-name/ls-only-listener -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-via-listenerset -> listenerset-section-name/ls-only-listener +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "listenerset-hostname-conflict",
        &[
            "gateway gateway-with-listenerset-hostname-conflict +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listenerset-hostname-conflict 2",
            "listener gateway-with-listenerset-hostname-conflict/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener gateway-with-listenerset-hostname-conflict/hostname-conflict-with-gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-with-hostname-conflict-with-gateway-1 +Accepted=ListenersNotValid +Programmed=Programmed",
            "listener listenerset-with-hostname-conflict-with-gateway-1/listener-set-1-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-with-hostname-conflict-with-gateway-1/hostname-conflict-with-gateway-listener 0 [HTTPRoute,GRPCRoute] -Accepted=HostnameConflict +Conflicted=HostnameConflict +ResolvedRefs=ResolvedRefs -Programmed=HostnameConflict",
            "listener listenerset-with-hostname-conflict-with-gateway-1/hostname-conflict-with-listener-set-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-with-hostname-conflict-with-gateway-2 -Accepted=ListenersNotValid -Programmed=ListenersNotValid",
            "listener listenerset-with-hostname-conflict-with-gateway-2/hostname-conflict-with-gateway-listener 0 [HTTPRoute,GRPCRoute] -Accepted=HostnameConflict +Conflicted=HostnameConflict +ResolvedRefs=ResolvedRefs -Programmed=HostnameConflict",
            "set listenerset-with-hostname-conflict-with-listener-set-1 +Accepted=ListenersNotValid +Programmed=Programmed",
            "listener listenerset-with-hostname-conflict-with-listener-set-1/listener-set-2-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-with-hostname-conflict-with-listener-set-1/hostname-conflict-with-listener-set-listener 0 [HTTPRoute,GRPCRoute] -Accepted=HostnameConflict +Conflicted=HostnameConflict +ResolvedRefs=ResolvedRefs -Programmed=HostnameConflict",
            "set listenerset-with-hostname-conflict-with-listener-set-2 -Accepted=ListenersNotValid -Programmed=ListenersNotValid",
            "listener listenerset-with-hostname-conflict-with-listener-set-2/hostname-conflict-with-listener-set-listener 0 [HTTPRoute,GRPCRoute] -Accepted=HostnameConflict +Conflicted=HostnameConflict +ResolvedRefs=ResolvedRefs -Programmed=HostnameConflict",
        ],
    ),
    (
        "listenerset-http-routing",
        &[
            "gateway gateway-with-listener-sets-http-routing +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listener-sets-http-routing 2",
            "listener gateway-with-listener-sets-http-routing/gateway-listener-1 3 [HTTPRoute,GRPCRoute] GOOD",
            "listener gateway-with-listener-sets-http-routing/gateway-listener-2 2 [HTTPRoute,GRPCRoute] GOOD",
            "set listener-set-http-routing-1 +Accepted=Accepted +Programmed=Programmed",
            "listener listener-set-http-routing-1/listener-set-http-routing-1-listener-1 3 [HTTPRoute,GRPCRoute] GOOD",
            "listener listener-set-http-routing-1/listener-set-http-routing-1-listener-2 2 [HTTPRoute,GRPCRoute] GOOD",
            "set listener-set-http-routing-2 +Accepted=Accepted +Programmed=Programmed",
            "listener listener-set-http-routing-2/listener-set-http-routing-2-listener-1 2 [HTTPRoute,GRPCRoute] GOOD",
            "listener listener-set-http-routing-2/listener-set-http-routing-2-listener-2 2 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute attaches-to-all-listeners -> gateway-with-listener-sets-http-routing +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute attaches-to-all-listeners -> listener-set-http-routing-1 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute attaches-to-all-listeners -> listener-set-http-routing-2 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute gateway-route -> gateway-with-listener-sets-http-routing +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute gateway-section-route -> gateway-with-listener-sets-http-routing/gateway-listener-1 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute listener-set-http-routing-1-route -> listener-set-http-routing-1 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute listener-set-http-routing-1-section-route -> listener-set-http-routing-1/listener-set-http-routing-1-listener-1 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute listener-set-http-routing-2-route -> listener-set-http-routing-2 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "listenerset-protocol-conflict",
        &[
            "gateway gateway-with-listenerset-protocol-conflict +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listenerset-protocol-conflict 2",
            "listener gateway-with-listenerset-protocol-conflict/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener gateway-with-listenerset-protocol-conflict/protocol-conflict-with-gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-with-protocol-conflict-with-gateway-1 +Accepted=ListenersNotValid +Programmed=Programmed",
            "listener listenerset-with-protocol-conflict-with-gateway-1/listener-set-1-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-with-protocol-conflict-with-gateway-1/protocol-conflict-with-gateway-listener 0 [TCPRoute] -Accepted=ProtocolConflict +Conflicted=ProtocolConflict +ResolvedRefs=ResolvedRefs -Programmed=ProtocolConflict",
            "listener listenerset-with-protocol-conflict-with-gateway-1/protocol-conflict-with-listener-set-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-with-protocol-conflict-with-gateway-2 -Accepted=ListenersNotValid -Programmed=ListenersNotValid",
            "listener listenerset-with-protocol-conflict-with-gateway-2/protocol-conflict-with-gateway-listener 0 [TCPRoute] -Accepted=ProtocolConflict +Conflicted=ProtocolConflict +ResolvedRefs=ResolvedRefs -Programmed=ProtocolConflict",
            "set listenerset-with-protocol-conflict-with-listener-set-1 +Accepted=ListenersNotValid +Programmed=Programmed",
            "listener listenerset-with-protocol-conflict-with-listener-set-1/listener-set-2-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "listener listenerset-with-protocol-conflict-with-listener-set-1/protocol-conflict-with-listener-set-listener 0 [TCPRoute] -Accepted=ProtocolConflict +Conflicted=ProtocolConflict +ResolvedRefs=ResolvedRefs -Programmed=ProtocolConflict",
            "set listenerset-with-protocol-conflict-with-listener-set-2 -Accepted=ListenersNotValid -Programmed=ListenersNotValid",
            "listener listenerset-with-protocol-conflict-with-listener-set-2/protocol-conflict-with-listener-set-listener 0 [TCPRoute] -Accepted=ProtocolConflict +Conflicted=ProtocolConflict +ResolvedRefs=ResolvedRefs -Programmed=ProtocolConflict",
        ],
    ),
    (
        "listenerset-reference-grant",
        &[
            "gateway gateway-with-listener-sets-test-reference-grant +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-with-listener-sets-test-reference-grant 1",
            "listener gateway-with-listener-sets-test-reference-grant/gateway-listener 0 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-without-reference-grant -Accepted=ListenersNotValid -Programmed=ListenersNotValid",
            "listener listenerset-without-reference-grant/listenerset-without-reference-grant-listener 0 [HTTPRoute,GRPCRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=RefNotPermitted -Programmed=Invalid",
            "set listenerset-with-reference-grant +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-with-reference-grant/listenerset-with-reference-grant-listener 0 [HTTPRoute,GRPCRoute] GOOD",
        ],
    ),
    (
        "listenerset-route-status-scoped-to-parentref",
        &[
            "gateway gateway-parentref +Accepted=Accepted +Programmed=Programmed",
            "sets gateway-parentref 1",
            "listener gateway-parentref/gw-parentref-listener 1 [HTTPRoute,GRPCRoute] GOOD",
            "set listenerset-parentref +Accepted=Accepted +Programmed=Programmed",
            "listener listenerset-parentref/listenerset-parentref-listener 1 [HTTPRoute,GRPCRoute] GOOD",
            "route HTTPRoute route-parentref-gwonly -> gateway-parentref +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route HTTPRoute route-parentref-lsonly -> listenerset-parentref +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tcproute-invalid-backendref-nonexistent",
        &[
            "gateway tcp-gateway-invalid-backend +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-gateway-invalid-backend/tcp 1 [TCPRoute] GOOD",
            "route TCPRoute tcp-route-invalid-backend-ref-nonexistent -> tcp-gateway-invalid-backend/tcp +Accepted=Accepted -ResolvedRefs=BackendNotFound",
        ],
    ),
    (
        "tcproute-invalid-cross-namespace-backend-ref",
        &[
            "gateway tcp-invalid-cross-namespace-backend-ref-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-invalid-cross-namespace-backend-ref-gateway/tcp 1 [TCPRoute] GOOD",
            "route TCPRoute tcp-invalid-cross-namespace-backend-ref -> tcp-invalid-cross-namespace-backend-ref-gateway/tcp +Accepted=Accepted -ResolvedRefs=RefNotPermitted",
        ],
    ),
    (
        "tcproute-invalid-non-tcp-listener",
        &[
            "gateway tcp-mixed-protocol-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-mixed-protocol-gateway/only-allow-http-routes 0 [HTTPRoute] GOOD",
            "route TCPRoute tcp-route -> tcp-mixed-protocol-gateway/only-allow-http-routes -Accepted=NotAllowedByListeners -ResolvedRefs=BackendNotFound",
        ],
    ),
    (
        "tcproute-multiple-routes-attachment",
        &[
            "gateway tcp-multi-route-attach-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-multi-route-attach-gateway/tcp 1 [TCPRoute] GOOD",
            "route TCPRoute tcproute-attach-older -> tcp-multi-route-attach-gateway/tcp +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tcproute-parentref-port-and-section-name",
        &[
            "gateway tcp-multi-listener-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-multi-listener-gateway/one 1 [TCPRoute] GOOD",
            "listener tcp-multi-listener-gateway/two 1 [TCPRoute] GOOD",
            "listener tcp-multi-listener-gateway/three 1 [TCPRoute] GOOD",
            "route TCPRoute tcp-route-by-port -> tcp-multi-listener-gateway:9300 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route TCPRoute tcp-route-by-section -> tcp-multi-listener-gateway/two +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route TCPRoute tcp-route-by-section-and-port -> tcp-multi-listener-gateway/three:9302 +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tcproute-reference-grant",
        &[
            "gateway tcp-reference-grant-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-reference-grant-gateway/tcp 1 [TCPRoute] GOOD",
            "route TCPRoute tcp-reference-grant -> tcp-reference-grant-gateway/tcp +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tcproute-weighted-routing",
        &[
            "gateway tcp-weighted-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener tcp-weighted-gateway/tcp 1 [TCPRoute] GOOD",
            "route TCPRoute tcp-weighted-route -> tcp-weighted-gateway/tcp +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tlsroute-invalid-backendref-nonexistent",
        &[
            "gateway gateway-tlsroute-invalid-backend-ref-nonexistent +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-invalid-backend-ref-nonexistent/tls 1 [TLSRoute] GOOD",
            "route TLSRoute invalid-backend-ref-nonexistent -> gateway-tlsroute-invalid-backend-ref-nonexistent +Accepted=Accepted -ResolvedRefs=BackendNotFound",
        ],
    ),
    (
        "tlsroute-invalid-backendref-unknown-kind",
        &[
            "gateway gateway-tlsroute-invalid-backend-ref-unknown-kind +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-invalid-backend-ref-unknown-kind/tls 1 [TLSRoute] GOOD",
            "route TLSRoute invalid-backend-ref-unknown-kind -> gateway-tlsroute-invalid-backend-ref-unknown-kind +Accepted=Accepted -ResolvedRefs=InvalidKind",
        ],
    ),
    (
        "tlsroute-invalid-no-matching-listener-hostname",
        &[
            "gateway gateway-tls-exact-hostname +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tls-exact-hostname/tls 0 [TLSRoute] GOOD",
            "gateway gateway-tls-wildcard-hostname +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tls-wildcard-hostname/tls 0 [TLSRoute] GOOD",
            "route TLSRoute tlsroute-hostname-mismatch-1 -> gateway-tls-exact-hostname -Accepted=NoMatchingListenerHostname +ResolvedRefs=ResolvedRefs",
            "route TLSRoute tlsroute-hostname-mismatch-2 -> gateway-tls-wildcard-hostname -Accepted=NoMatchingListenerHostname +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tlsroute-invalid-no-matching-listener",
        &[
            "gateway gateway-tlsroute-http-only +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-http-only/http 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-tlsroute-https-only +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-https-only/https 0 [HTTPRoute,GRPCRoute] GOOD",
            "gateway gateway-tlsroute-tls-passthrough-only +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-tls-passthrough-only/tls-passthrough 0 [TLSRoute] GOOD",
            "route TLSRoute tlsroute-no-matching-section-name -> gateway-tlsroute-tls-passthrough-only/nonexistent-listener -Accepted=NoMatchingParent +ResolvedRefs=ResolvedRefs",
            "route TLSRoute tlsroute-not-allowed-protocol-http -> gateway-tlsroute-http-only -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
            "route TLSRoute tlsroute-not-allowed-protocol-https -> gateway-tlsroute-https-only -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tlsroute-invalid-reference-grant",
        &[
            "gateway gateway-tlsroute-referencegrant +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-referencegrant/https 1 [TLSRoute] GOOD",
            "route TLSRoute gateway-conformance-infra-test -> gateway-tlsroute-referencegrant +Accepted=Accepted -ResolvedRefs=RefNotPermitted",
        ],
    ),
    (
        "tlsroute-listener-passthrough-supported-kinds",
        &[
            "gateway gateway-tlsroute-passthrough-supported-kind +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-passthrough-supported-kind/tls-passthrough 0 [TLSRoute] +Accepted=Accepted -Conflicted=NoConflicts -ResolvedRefs=InvalidRouteKinds +Programmed=Programmed",
        ],
    ),
    (
        "tlsroute-listener-terminate-supported-kinds",
        &[
            "gateway gateway-tlsroute-terminate-supported +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-terminate-supported/tls-terminate 0 [TLSRoute] GOOD",
        ],
    ),
    (
        "tlsroute-mixed-termination-same-namespace",
        &[
            "gateway gateway-tlsroute-mixed-termination +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute-mixed-termination/tls-terminate 1 [TLSRoute] GOOD",
            "listener gateway-tlsroute-mixed-termination/tls-passthrough 1 [TLSRoute] GOOD",
            "route TLSRoute gateway-conformance-mixed-passthroughroute -> gateway-tlsroute-mixed-termination +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
            "route TLSRoute gateway-conformance-mixed-terminateroute -> gateway-tlsroute-mixed-termination +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "tlsroute-simple-same-namespace",
        &[
            "gateway gateway-tlsroute +Accepted=Accepted +Programmed=Programmed",
            "listener gateway-tlsroute/https 1 [TLSRoute] GOOD",
            "route TLSRoute gateway-conformance-infra-test -> gateway-tlsroute +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "udproute-multiple-routes-attachment",
        &[
            "gateway udp-multi-route-attach-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener udp-multi-route-attach-gateway/udp 1 [UDPRoute] GOOD",
            "route UDPRoute udproute-attach-older -> udp-multi-route-attach-gateway/udp +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "udproute-not-allowed-by-listeners",
        &[
            "gateway udproute-tls-only-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener udproute-tls-only-gateway/tls 0 [TLSRoute] GOOD",
            "route UDPRoute udproute-not-allowed-by-listeners -> udproute-tls-only-gateway/tls -Accepted=NotAllowedByListeners +ResolvedRefs=ResolvedRefs",
        ],
    ),
    (
        "udproute-simple",
        &[
            "gateway udp-gateway +Accepted=Accepted +Programmed=Programmed",
            "listener udp-gateway/coredns 1 [UDPRoute] GOOD",
            "route UDPRoute udp-coredns -> udp-gateway/coredns +Accepted=Accepted +ResolvedRefs=ResolvedRefs",
        ],
    ),
];
