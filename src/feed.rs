//! Pieces of a stream on their way to the thread that stores them, many at a time: to wake a thread costs more than
//! to store what one message brings.

use tokio::sync::mpsc;

/// Bytes that are handed over together.
const TOGETHER: usize = 256 << 10;
/// What a piece takes besides its bytes, and more.
const PIECE: usize = 256;
/// How often may be handed over before the first is taken. A message has 1 MiB at most, and mostly 32 KiB.
const QUEUE: usize = 8;

/// Where the pieces go in.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    to: mpsc::Sender<Vec<T>>,
    gathered: Vec<T>,
    bytes: usize,
}

/// Where they come out.
#[derive(Debug)]
pub(crate) struct Fed<T> {
    from: mpsc::Receiver<Vec<T>>,
    current: std::vec::IntoIter<T>,
}

/// Both ends.
pub(crate) fn feed<T>() -> (Feed<T>, Fed<T>) {
    let (to, from) = mpsc::channel(QUEUE);
    (Feed { to, gathered: Vec::new(), bytes: 0 }, Fed { from, current: Vec::new().into_iter() })
}

impl<T> Feed<T> {
    /// Takes a piece that has so many bytes; false if nobody stores it.
    pub(crate) async fn put(&mut self, piece: T, bytes: usize) -> bool {
        self.gathered.push(piece);
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(PIECE);
        self.bytes < TOGETHER || self.hand_over().await
    }

    /// Hands over what has gathered, for it may take long until there is more; false if nobody stores it.
    pub(crate) async fn hand_over(&mut self) -> bool {
        self.bytes = 0;
        match std::mem::take(&mut self.gathered) {
            nothing if nothing.is_empty() => !self.to.is_closed(),
            gathered => self.to.send(gathered).await.is_ok(),
        }
    }
}

impl<T> Fed<T> {
    /// Waits for the next piece, in a thread; `None` when there are no more.
    pub(crate) fn next(&mut self) -> Option<T> {
        loop {
            match self.current.next() {
                Some(piece) => return Some(piece),
                None => self.current = self.from.blocking_recv()?.into_iter(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_come_out_as_they_went_in() {
        let (mut to, mut from) = feed();
        let taken = std::thread::spawn(move || {
            let mut all = Vec::new();
            while let Some(piece) = from.next() {
                all.push(piece);
            }
            all
        });
        for n in 0..10_000 {
            assert!(to.put(n, n * 7 % 40_000).await);
            assert!(n % 1000 != 0 || to.hand_over().await);
        }
        assert!(to.hand_over().await && to.hand_over().await);
        drop(to);
        assert_eq!(taken.join().unwrap(), (0..10_000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_puts_hears_that_nobody_takes() {
        let (mut to, from) = feed();
        assert!(to.hand_over().await);
        assert!(to.put("few", 3).await);
        drop(from);
        assert!(!to.put("many", TOGETHER).await);
        assert!(!to.hand_over().await, "there is nothing to hand over, and nobody");
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (mut to, _from) = feed();
        let mut put = 0;
        let putting = async {
            while to.put((), 32 << 10).await {
                put += 1;
            }
        };
        tokio::time::timeout(std::time::Duration::from_millis(100), putting).await.unwrap_err();
        assert!((60..80).contains(&put), "{put}");
    }
}
