//! A document as the tests see it: fenced blocks with the comment before each, links, and the anchors of its headings.

use std::collections::BTreeMap;
use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A fenced block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Where its text stands in the document.
    pub(crate) range: Range<usize>,
    pub(crate) line: usize,
    /// What stands behind the fence: `sh`, `console`, `yaml`.
    pub(crate) language: String,
    pub(crate) text: String,
    /// What an HTML comment right before it says.
    pub(crate) comment: String,
    /// The heading that it stands under.
    pub(crate) section: String,
}

#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(crate) blocks: Vec<Block>,
    /// Links and pictures: line and target.
    pub(crate) links: Vec<(usize, String)>,
    pub(crate) anchors: Vec<String>,
    /// Code within text: line and text.
    pub(crate) spans: Vec<(usize, String)>,
}

/// Reads a document.
pub(crate) fn parse(text: &str) -> Document {
    let line = |at: usize| 1 + text[..at].matches('\n').count();
    let mut document = Document::default();
    let mut comment = String::new();
    let mut heading: Option<String> = None;
    let mut section = String::new();
    let mut block: Option<Block> = None;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Html(html) => comment.push_str(&html),
            Event::Start(Tag::HtmlBlock) => comment.clear(),
            Event::Start(Tag::CodeBlock(kind)) => {
                let language = match kind {
                    CodeBlockKind::Fenced(info) => info.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                block = Some(Block {
                    range: 0..0,
                    line: line(range.start),
                    language,
                    text: String::new(),
                    comment: inside(&std::mem::take(&mut comment)),
                    section: section.clone(),
                });
            }
            Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
            Event::Text(words) => match (&mut block, &mut heading) {
                (Some(block), _) => {
                    if block.text.is_empty() {
                        block.range = range.clone();
                    }
                    block.range.end = range.end;
                    block.text.push_str(&words);
                }
                (None, Some(heading)) => heading.push_str(&words),
                (None, None) => {}
            },
            Event::Code(words) => {
                document.spans.push((line(range.start), words.to_string()));
                if let Some(heading) = &mut heading {
                    heading.push_str(&words);
                }
            }
            Event::Start(Tag::Heading { .. }) => {
                comment.clear();
                heading = Some(String::new());
            }
            Event::End(TagEnd::Heading(_)) => {
                section = heading.take().unwrap_or_default();
                let anchor = anchor(&section);
                let times = seen.entry(anchor.clone()).or_default();
                let numbered = if *times == 0 {
                    anchor
                } else {
                    format!("{anchor}-{times}")
                };
                *times += 1;
                document.anchors.push(numbered);
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push((line(range.start), dest_url.to_string()));
            }
            Event::Start(Tag::Paragraph | Tag::List(_) | Tag::Table(_)) => comment.clear(),
            _ => {}
        }
    }
    document
}

/// What an HTML comment says.
fn inside(html: &str) -> String {
    let said = html.trim().strip_prefix("<!--");
    let said = said.and_then(|it| it.strip_suffix("-->"));
    said.unwrap_or_default().trim().to_owned()
}

/// The anchor that forges and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.map(|it| if it == ' ' { '-' } else { it.to_ascii_lowercase() })
        .collect()
}

#[test]
fn blocks_have_their_comment_and_headings_their_anchor() {
    let text = "# A `b`, c?\n\n<!-- exits 2 -->\n```console\n$ x\ny\n```\n\n<!-- z -->\n\nWords [l](m.md#n).\n\n```sh\nx\n```\n\n# A b c\n";
    let document = parse(text);
    let [one, two] = document.blocks.as_slice() else {
        panic!("{document:?}")
    };
    assert_eq!(
        (one.language.as_str(), one.comment.as_str(), one.line),
        ("console", "exits 2", 4)
    );
    assert_eq!(&text[one.range.clone()], "$ x\ny\n");
    assert_eq!((two.text.as_str(), two.comment.as_str()), ("x\n", ""));
    assert_eq!(document.anchors, ["a-b-c", "a-b-c-1"]);
    assert_eq!(document.links, [(11, "m.md#n".to_owned())]);
}
