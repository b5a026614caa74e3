//! Letters between hosts: gRPC over TLS in which both sides show a certificate of the job.
//!
//! The only file that knows how letters travel. A coordinator has an [`Exchange`], an agent a [`Line`] to it that is made
//! again whenever it breaks; both are asked by loops that wait for descriptors, and served by a thread of their own. A
//! letter that cannot be delivered is lost: the protocol says again what was not answered. Who does not answer the pings
//! of HTTP/2 in time is gone.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Debug;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::{BoxFuture, BoxStream, Context, Poll, Service, http};
use tonic::metadata::AsciiMetadataValue;
use tonic::server::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::bell::Bell;
use super::credentials::{COORDINATOR, Identity};
use crate::failure::{Class, Failure, Result};

/// The stream of letters of one agent.
const LINE: &str = "/hdcr.Job/Line";
/// One question of a command, and its answer.
const ASK: &str = "/hdcr.Job/Ask";
/// Whose line it is.
const MEMBER: &str = "hdcr-member";
/// No letter is longer.
const LONGEST: usize = 64 << 20;
/// Who has not answered a ping ...
const PING: Duration = Duration::from_secs(2);
/// ... for so long is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// A connection that is not made in this time is not made.
const CONNECTING: Duration = Duration::from_secs(5);
/// From one attempt to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What a coordinator hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The line of a member's agent is there, for the first time or again.
    Came(u32),
    /// It is gone.
    Went(u32),
    /// A letter of a member's agent.
    Said(u32, Vec<u8>),
    /// A question of a command.
    Asked(Question),
}

/// A question that waits for its answer; dropped, it is refused.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) what: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Question {
    pub(crate) fn answer(self, answer: Vec<u8>) {
        if self.answer.send(answer).is_err() {
            tracing::debug!("who has asked is gone");
        }
    }
}

/// The coordinator's side.
pub(crate) trait Exchange: Debug {
    /// Can be read when there is something to be heard.
    fn fd(&self) -> BorrowedFd<'_>;
    fn hear(&self) -> VecDeque<Heard>;
    fn tell(&self, to: u32, letter: Vec<u8>);
    /// Where it listens.
    fn address(&self) -> &str;
}

/// What an agent hears.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum HeardHere {
    Came,
    Went,
    Said(Vec<u8>),
}

/// An agent's side.
pub(crate) trait Line: Debug {
    /// Can be read when there is something to be heard.
    fn fd(&self) -> BorrowedFd<'_>;
    fn hear(&self) -> VecDeque<HeardHere>;
    fn tell(&self, letter: Vec<u8>);
}

/// Letters as they are.
#[derive(Clone, Copy, Debug)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> std::result::Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

type Outward = mpsc::UnboundedSender<Vec<u8>>;

/// What the thread of a coordinator and its loop share.
#[derive(Debug)]
struct Desk {
    heard: Bell<Heard>,
    /// The newest line of each member, by a number.
    lines: Mutex<BTreeMap<u32, (u64, Outward)>>,
}

impl Desk {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<u32, (u64, Outward)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn come(&self, member: u32, outward: Outward) -> u64 {
        let mut lines = self.lines();
        let number = lines.get(&member).map_or(0, |(number, _)| number.saturating_add(1));
        lines.insert(member, (number, outward));
        self.heard.ring(Heard::Came(member));
        number
    }

    /// What is said on a line that another one has taken the place of is not heard.
    fn said(&self, member: u32, number: u64, letter: Vec<u8>) {
        let lines = self.lines();
        if lines.get(&member).is_some_and(|line| line.0 == number) {
            self.heard.ring(Heard::Said(member, letter));
        }
    }

    fn went(&self, member: u32, number: u64) {
        let mut lines = self.lines();
        if lines.get(&member).is_some_and(|line| line.0 == number) {
            lines.remove(&member);
            self.heard.ring(Heard::Went(member));
        }
    }
}

/// What answers calls.
#[derive(Clone, Debug)]
struct Calls(Arc<Desk>);

/// The end of every line.
#[derive(Debug)]
struct OnLine(Arc<Desk>);

/// And of every question.
#[derive(Debug)]
struct OnAsk(Arc<Desk>);

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let desk = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = Grpc::new(Plain).max_decoding_message_size(LONGEST);
            Ok(match request.uri().path() {
                LINE => grpc.streaming(OnLine(desk), request).await,
                ASK => grpc.unary(OnAsk(desk), request).await,
                _ => Status::unimplemented("no such call").into_http(),
            })
        })
    }
}

impl Service<Request<Streaming<Vec<u8>>>> for OnLine {
    type Response = Response<BoxStream<Vec<u8>>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let desk = Arc::clone(&self.0);
        Box::pin(async move {
            let member = request.metadata().get(MEMBER).and_then(|text| text.to_str().ok()?.parse().ok());
            let member: u32 = member.ok_or_else(|| Status::invalid_argument("whose line is it"))?;
            let (outward, letters) = mpsc::unbounded_channel();
            let number = desk.come(member, outward);
            let mut inward = request.into_inner();
            tokio::spawn(async move {
                while let Ok(Some(letter)) = inward.message().await {
                    desk.said(member, number, letter);
                }
                desk.went(member, number);
            });
            Ok(Response::new(Box::pin(UnboundedReceiverStream::new(letters).map(Ok)) as BoxStream<Vec<u8>>))
        })
    }
}

impl Service<Request<Vec<u8>>> for OnAsk {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        self.0.heard.ring(Heard::Asked(Question { what: request.into_inner(), answer }));
        Box::pin(async move {
            answered.await.map(Response::new).map_err(|_| Status::unavailable("the coordinator does not answer"))
        })
    }
}

/// A coordinator's exchange over the network.
#[derive(Debug)]
struct NetworkExchange {
    desk: Arc<Desk>,
    address: String,
    /// Dropped, the thread ends.
    _thread: oneshot::Sender<()>,
}

impl Exchange for NetworkExchange {
    fn fd(&self) -> BorrowedFd<'_> {
        self.desk.heard.as_fd()
    }

    fn hear(&self) -> VecDeque<Heard> {
        self.desk.heard.hear()
    }

    fn tell(&self, to: u32, letter: Vec<u8>) {
        if self.desk.lines().get(&to).is_none_or(|(_, outward)| outward.send(letter).is_err()) {
            tracing::trace!(to, "a letter is lost");
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}

/// Begins to listen.
pub(crate) fn serve(listen: SocketAddr, identity: &Identity) -> Result<Box<dyn Exchange>> {
    let listener = TcpListener::bind(listen).map_err(Failure::system(format_args!("listening at {listen}")))?;
    listener.set_nonblocking(true).map_err(Failure::system("listening without waiting"))?;
    let address = listener.local_addr().map_err(Failure::system("finding one's own address"))?.to_string();
    let tls = ServerTlsConfig::new()
        .identity(own(identity))
        .client_ca_root(Certificate::from_pem(&identity.authority))
        .timeout(CONNECTING);
    let server = Server::builder().tls_config(tls).map_err(|error| secured(&error))?;
    let server = server.http2_keepalive_interval(Some(PING)).http2_keepalive_timeout(Some(SILENCE));
    let desk = Arc::new(Desk { heard: Bell::new()?, lines: Mutex::default() });
    let calls = Calls(Arc::clone(&desk));
    let thread = in_thread("exchange", async move {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::warn!(%error, "nothing is listened to"),
        };
        let incoming = TcpListenerStream::new(listener)
            .map(|stream| stream.inspect(|stream| stream.set_nodelay(true).unwrap_or_default()));
        if let Err(error) = { server }.serve_with_incoming(calls, incoming).await {
            tracing::warn!(%error, "nothing is listened to any more");
        }
    })?;
    Ok(Box::new(NetworkExchange { desk, address, _thread: thread }))
}

/// Does something in a thread until what is returned is dropped.
fn in_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<oneshot::Sender<()>> {
    let runtime = runtime()?;
    let (sender, dropped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.spawn(work);
        // It is never sent.
        runtime.block_on(dropped).ok();
        runtime.shutdown_background();
    });
    thread.map_err(Failure::system("starting a thread"))?;
    Ok(sender)
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().map_err(Failure::system("preparing to send letters"))
}

fn own(identity: &Identity) -> tonic::transport::Identity {
    tonic::transport::Identity::from_pem(&identity.certificate, &identity.key)
}

fn secured(error: &tonic::transport::Error) -> Failure {
    Failure::new(Class::Corrupt, "certificates", crate::failure::chain(error))
        .remedy("remove coordinator.json and agent.json of the job: they are made anew")
}

/// The way to a coordinator; not connected yet.
fn endpoint(identity: &Identity, address: &str) -> std::result::Result<Endpoint, tonic::transport::Error> {
    let tls = ClientTlsConfig::new()
        .domain_name(COORDINATOR)
        .ca_certificate(Certificate::from_pem(&identity.authority))
        .identity(own(identity))
        .timeout(CONNECTING);
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
    Ok(endpoint
        .connect_timeout(CONNECTING)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(SILENCE)
        .keep_alive_while_idle(true))
}

/// What the thread of an agent and its loop share.
#[derive(Debug)]
struct Post {
    heard: Bell<HeardHere>,
    outward: Mutex<Option<Outward>>,
}

impl Post {
    fn outward(&self) -> MutexGuard<'_, Option<Outward>> {
        self.outward.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent's line over the network.
#[derive(Debug)]
struct NetworkLine {
    post: Arc<Post>,
    /// Dropped, the thread ends.
    _thread: oneshot::Sender<()>,
}

impl Line for NetworkLine {
    fn fd(&self) -> BorrowedFd<'_> {
        self.post.heard.as_fd()
    }

    fn hear(&self) -> VecDeque<HeardHere> {
        self.post.heard.hear()
    }

    fn tell(&self, letter: Vec<u8>) {
        if self.post.outward().as_ref().is_none_or(|outward| outward.send(letter).is_err()) {
            tracing::trace!("a letter is lost");
        }
    }
}

/// Where a coordinator may be found, asked anew before each attempt.
pub(crate) type Addresses = Box<dyn Fn() -> Vec<String> + Send>;

/// Keeps a line to the coordinator for a member.
pub(crate) fn join(identity: &Identity, member: u32, addresses: Addresses) -> Result<Box<dyn Line>> {
    let post = Arc::new(Post { heard: Bell::new()?, outward: Mutex::default() });
    let (far, identity) = (Arc::clone(&post), identity.clone());
    let thread = in_thread("line", async move {
        loop {
            for address in addresses() {
                if let Err(status) = keep_line(&identity, &address, member, &far).await {
                    tracing::trace!(%address, %status, "no line to the coordinator");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    })?;
    Ok(Box::new(NetworkLine { post, _thread: thread }))
}

/// Makes a line and keeps it until it breaks.
async fn keep_line(
    identity: &Identity,
    address: &str,
    member: u32,
    post: &Post,
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = client(identity, address).await?;
    let (outward, letters) = mpsc::unbounded_channel();
    let mut request = Request::new(UnboundedReceiverStream::new(letters));
    request.metadata_mut().insert(MEMBER, AsciiMetadataValue::from(member));
    let mut inward = client.streaming(request, http::uri::PathAndQuery::from_static(LINE), Plain).await?.into_inner();
    *post.outward() = Some(outward);
    post.heard.ring(HeardHere::Came);
    while let Ok(Some(letter)) = inward.message().await {
        post.heard.ring(HeardHere::Said(letter));
    }
    *post.outward() = None;
    post.heard.ring(HeardHere::Went);
    Ok(())
}

async fn client(
    identity: &Identity,
    address: &str,
) -> std::result::Result<Client<Channel>, Box<dyn std::error::Error + Send + Sync>> {
    let channel = endpoint(identity, address)?.connect().await?;
    let mut client = Client::new(channel).max_decoding_message_size(LONGEST);
    client.ready().await?;
    Ok(client)
}

/// Asks a coordinator something.
pub(crate) fn ask(identity: &Identity, address: &str, what: Vec<u8>, limit: Duration) -> Result<Vec<u8>> {
    let silent = |why: String| {
        Failure::new(
            Class::Changed,
            "coordinator-silent",
            format!("the coordinator at {address} does not answer: {why}"),
        )
        .remedy("see whether `hdcr job run` still runs; run it again with the same name to go on")
    };
    let asking = async {
        let mut client = client(identity, address).await.map_err(|error| silent(crate::failure::chain(&*error)))?;
        let answer = client.unary(Request::new(what), http::uri::PathAndQuery::from_static(ASK), Plain).await;
        answer.map(Response::into_inner).map_err(|status| silent(status.message().to_owned()))
    };
    let runtime = runtime()?;
    let answer = runtime.block_on(async { tokio::time::timeout(limit, asking).await });
    answer.unwrap_or_else(|_| Err(silent("it takes too long".to_owned())))
}

#[cfg(test)]
mod tests {
    use hdcr_image::JobName;
    use rustix::event::{PollFd, PollFlags, poll};

    use super::super::credentials;
    use super::super::room::Room;
    use super::*;

    /// Both sides' certificates of a job.
    fn identities(store: &std::path::Path, name: &str) -> (Identity, Identity) {
        let name = JobName::new(name).unwrap();
        let room = Room::of(store, &name);
        let _lock = room.take(&name).unwrap();
        let coordinator = credentials::of_coordinator(&room, name.as_str(), store).unwrap();
        (coordinator, credentials::read(&credentials::for_agents(&room)).unwrap().identity)
    }

    fn here() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn next<T>(queue: &mut VecDeque<T>, fd: BorrowedFd<'_>, hear: impl Fn() -> VecDeque<T>) -> T {
        loop {
            if let Some(heard) = queue.pop_front() {
                return heard;
            }
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
            queue.extend(hear());
        }
    }

    #[test]
    fn letters_go_both_ways_and_a_line_is_made_again() {
        let store = tempfile::tempdir().unwrap();
        let (coordinator, agent) = identities(store.path(), "sim");
        let exchange = serve(here(), &coordinator).unwrap();
        let at = Arc::new(Mutex::new(exchange.address().to_owned()));
        let addresses = Arc::clone(&at);
        let line = join(&agent, 7, Box::new(move || vec![addresses.lock().unwrap().clone()])).unwrap();
        let (mut there, mut here_too) = (VecDeque::new(), VecDeque::new());
        let mut hear = |exchange: &dyn Exchange| next(&mut there, exchange.fd(), || exchange.hear());
        let mut hear_here = || next(&mut here_too, line.fd(), || line.hear());
        assert!(matches!(hear(&*exchange), Heard::Came(7)) && hear_here() == HeardHere::Came);
        line.tell(b"up".to_vec());
        assert!(matches!(hear(&*exchange), Heard::Said(7, letter) if letter == b"up"));
        exchange.tell(7, b"down".to_vec());
        exchange.tell(8, b"lost".to_vec());
        assert_eq!(hear_here(), HeardHere::Said(b"down".to_vec()));
        drop(exchange);
        assert_eq!(hear_here(), HeardHere::Went);
        let exchange = serve(here(), &coordinator).unwrap();
        *at.lock().unwrap() = exchange.address().to_owned();
        let mut there = VecDeque::new();
        assert!(matches!(next(&mut there, exchange.fd(), || exchange.hear()), Heard::Came(7)));
        assert_eq!(hear_here(), HeardHere::Came);
        drop(line);
        assert!(matches!(next(&mut there, exchange.fd(), || exchange.hear()), Heard::Went(7)));
    }

    #[test]
    fn questions_are_answered_and_strangers_are_not() {
        let store = tempfile::tempdir().unwrap();
        let (coordinator, agent) = identities(store.path(), "sim");
        let (_, stranger) = identities(store.path(), "other");
        let exchange = serve(here(), &coordinator).unwrap();
        let address = exchange.address().to_owned();
        let asked = address.clone();
        let asking = std::thread::spawn(move || ask(&agent, &asked, b"what".to_vec(), SILENCE).unwrap());
        let mut there = VecDeque::new();
        let heard = next(&mut there, exchange.fd(), || exchange.hear());
        let Heard::Asked(question) = heard else { panic!("{heard:?}") };
        assert_eq!(question.what, b"what");
        question.answer(b"that".to_vec());
        assert_eq!(asking.join().unwrap(), b"that");
        // One of another job, one that takes the coordinator's for an agent's, and one whose own is good and who asks a
        // stranger.
        let pretender = Identity { authority: coordinator.authority.clone(), ..stranger.clone() };
        for identity in [&stranger, &pretender, &coordinator] {
            let refused = ask(identity, &address, b"what".to_vec(), SILENCE);
            assert!(refused.is_err_and(|failure| failure.code == "coordinator-silent"));
        }
        assert!(exchange.hear().is_empty());
    }
}
