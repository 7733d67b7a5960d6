//! Named counters.

use std::collections::BTreeMap;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;

use super::{Elements, ElementsError, family};
use crate::kernel::netlink::{NetlinkError, attribute, message, text_attribute, u64_attribute};
use crate::plan::ruleset::{CounterName, TABLE, TableFamily};

/// A named counter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

impl Elements {
    /// The named counters of our tables, by name: none stands in both.
    pub fn counters(&mut self) -> Result<BTreeMap<CounterName, Counter>, ElementsError> {
        let counters = self
            .netfilter
            .dump(&counters_request(), parse_counter)
            .map_err(ElementsError::Counters)?;
        Ok(counters.into_iter().collect())
    }

    /// One named counter; `None`: the table has none of this name.
    pub fn counter(
        &mut self,
        table: TableFamily,
        name: &CounterName,
    ) -> Result<Option<Counter>, ElementsError> {
        let mut attributes = counter_attributes();
        let name = format!("{}\0", name.as_str()).into_bytes();
        attributes.push(DefaultNla::new(NFTA_OBJ_NAME, name));
        let request = message(family(table), NfTablesMessage::GetObject(attributes));
        match self.netfilter.get(&request, parse_counter) {
            Ok((_, counter)) => Ok(Some(counter)),
            Err(NetlinkError::Refused(Errno::ENOENT)) => Ok(None),
            Err(error) => Err(ElementsError::Counters(error)),
        }
    }
}

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;

/// Filtered by table and type in the kernel.
fn counters_request() -> NetfilterMessage {
    message(
        NetfilterProtoFamily::Unspec,
        NfTablesMessage::GetObject(counter_attributes()),
    )
}

fn counter_attributes() -> Vec<DefaultNla> {
    const NFT_OBJECT_COUNTER: u32 = 1;
    let table = format!("{TABLE}\0").into_bytes();
    vec![
        DefaultNla::new(NFTA_OBJ_TABLE, table),
        DefaultNla::new(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER.to_be_bytes().to_vec()),
    ]
}

pub(in crate::kernel) fn parse_counter(payload: &[u8]) -> Option<(CounterName, Counter)> {
    const NFTA_COUNTER_BYTES: u16 = 1;
    const NFTA_COUNTER_PACKETS: u16 = 2;
    let data = attribute(payload, NFTA_OBJ_DATA)?;
    let counter = Counter {
        packets: u64_attribute(data, NFTA_COUNTER_PACKETS)?,
        bytes: u64_attribute(data, NFTA_COUNTER_BYTES)?,
    };
    Some((
        CounterName::from(text_attribute(payload, NFTA_OBJ_NAME)?),
        counter,
    ))
}
