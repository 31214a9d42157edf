//! Which certificates are trusted.

#[path = "mock/grpc.rs"]
mod grpc;
mod mock;

use std::sync::Arc;

use grpc::streamed;
use mock::{Mock, Pace, plan, run, tgi_facts, tgi_stream, try_run};
use pelton_bench::TargetPlan;

/// A certificate for the localhost that nobody else signed, which may call itself an authority, as those of `openssl req -x509` do.
fn self_signed(is_authority: bool, change: fn(&mut rcgen::CertificateParams)) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    if is_authority {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    change(&mut params);
    let signing_key = rcgen::KeyPair::generate().expect("a key");
    rcgen::CertifiedKey { cert: params.self_signed(&signing_key).expect("signed"), signing_key }
}

/// Ends TLS in front of a plain server. Returns its address and its certificate as PEM.
fn tls_in_front_of(
    plain: std::net::SocketAddr,
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
) -> (std::net::SocketAddr, String) {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into());
    let mut config = config.expect("the key belongs to the certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("the socket allows it");
    let address = listener.local_addr().expect("the listener is bound");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let _ = socket.set_nodelay(true);
                tokio::spawn(async move {
                    // A client that does not trust the certificate goes away.
                    let Ok(mut secure) = acceptor.accept(socket).await else { return };
                    let Ok(mut plain) = tokio::net::TcpStream::connect(plain).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut secure, &mut plain).await;
                });
            }
        });
    });
    (address, made.cert.pem())
}

#[test]
fn tls_trusts_what_it_is_told_to_trust_and_nothing_else() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(1, 0))));
    let (address, certificate) = tls_in_front_of(mock.address, self_signed(false, |_| ()));
    let file = std::env::temp_dir().join(format!("pelton-bench-ca-{}.pem", std::process::id()));
    std::fs::write(&file, certificate).expect("the file can be written");

    let mut plan = plan(format!("https://localhost:{}", address.port()), 3, 2);
    let error = try_run(&plan).expect_err("nobody signed the certificate").to_string();
    assert!(error.contains("connect: ") && error.contains("certificate"), "{error}");

    plan.target.ca = Some(file.clone());
    let results = run(&plan);
    assert_eq!((results.runs[0].summary.requests.complete, results.plan.target.insecure), (3, false));

    plan.target.ca = None;
    plan.target.insecure = true;
    let results = run(&plan);
    assert!(results.plan.target.insecure);
    assert!(results.runs[0].summary.notes.iter().any(|note| note.contains("any certificate")), "it is said");

    let calls = grpc::start(|call| grpc::facts(call).unwrap_or_else(|| vec![streamed(" a"), grpc::Act::Status(0, "")]));
    let (address, certificate) = tls_in_front_of(calls, self_signed(false, |_| ()));
    std::fs::write(&file, certificate).expect("the file can be written");
    plan.target =
        TargetPlan { ca: Some(file.clone()), ..TargetPlan::at(format!("grpcs://127.0.0.1:{}", address.port())) };
    assert_eq!(run(&plan).runs[0].summary.requests.complete, 3);

    std::fs::write(&file, "no certificate").expect("the file can be written");
    let error = try_run(&plan).expect_err("nothing to trust").to_string();
    assert!(error.contains("holds none"), "{error}");
    let _ = std::fs::remove_file(&file);
}

#[test]
fn a_given_certificate_may_call_itself_an_authority() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(1, 0))));
    let file = std::env::temp_dir().join(format!("pelton-bench-authority-{}.pem", std::process::id()));
    let exchange = |host: &str, change: fn(&mut rcgen::CertificateParams)| {
        let (address, certificate) = tls_in_front_of(mock.address, self_signed(true, change));
        std::fs::write(&file, certificate).expect("the file can be written");
        let mut plan = plan(format!("https://{host}:{}", address.port()), 2, 2);
        plan.target.ca = Some(file.clone());
        try_run(&plan).map(|results| results.runs[0].summary.requests.complete).map_err(|error| error.to_string())
    };
    assert_eq!(exchange("localhost", |_| ()), Ok(2));
    assert_eq!(exchange("127.0.0.1", |_| ()), Ok(2));
    let other_name = |params: &mut rcgen::CertificateParams| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("elsewhere".try_into().expect("a name"))];
    };
    let error = exchange("localhost", other_name).expect_err("another server's");
    assert!(error.contains("not valid for name"), "{error}");
    let expired = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let error = exchange("localhost", expired).expect_err("too old");
    assert!(error.contains("expired"), "{error}");
    let (address, _) = tls_in_front_of(mock.address, self_signed(true, |_| ()));
    let another = self_signed(true, |_| ());
    std::fs::write(&file, another.cert.pem()).expect("the file can be written");
    let mut plan = plan(format!("https://localhost:{}", address.port()), 2, 2);
    plan.target.ca = Some(file.clone());
    let error = try_run(&plan).expect_err("not the one that was given").to_string();
    assert!(error.contains("certificate"), "{error}");
    let _ = std::fs::remove_file(&file);
}
