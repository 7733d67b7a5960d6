//! A socket in front of the engine's that lets pass the calls that Cofferdam makes, and nothing else. Whoever may use the engine's own
//! socket is root on the host; whoever may use this one can read what containers and networks there are, and change networks of ours.
//!
//! | module | owns |
//! |---|---|
//! | [`call`] | which calls those are: a request is understood, and made anew from what was understood |
//! | `body` | what the three calls with a body may ask for |
//! | [`serve`] | the socket, and the way to the engine and back |
//! | [`answer`] | what of an answer is passed on |

pub mod answer;
mod body;
pub mod call;
pub mod serve;

pub use serve::{Filter, Stops};
