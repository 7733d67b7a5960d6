'use strict';
// What voids or weakens segmentation on the host, container by container.

const SEVERITIES = ['critical', 'high', 'medium', 'low'];

/** What is between backticks is code. */
const prose = (text) => text.split('`').map((part, index) => (index % 2 ? h('code', {}, shown(part)) : shown(part)));

/** How many of the graver ones there are, beside the tab's name. */
function showAuditCount(state) {
  const open = state.audit ? state.audit.open : {};
  const grave = (open.critical || 0) + (open.high || 0);
  const badge = byId('audit-count');
  badge.textContent = grave ? compact(grave) : '';
  badge.title = grave ? `${count(grave, 'finding')} critical or high` : '';
}

function findingElement(found) {
  const accepted = found.accepted;
  return h('li', { class: accepted ? 'accepted' : SEVERITIES.includes(found.severity) ? found.severity : '', 'data-code': found.code },
    h('div', {}, h('span', { class: 'severity' }, found.severity), h('span', { class: 'mono' }, found.code),
      h('span', { class: 'name' }, prose(found.message))),
    h('div', { class: 'mend name' }, accepted ? `accepted until ${shown(accepted.until)}: ${shown(accepted.reason)}` : prose(found.mend)));
}

function subjectElement(subject) {
  const name = subject.container === null ? 'The engine' : shown(subject.container);
  return h('section', { class: 'subject', 'data-container': subject.container },
    h('h3', { class: 'name' }, name, subject.is_running ? null : h('span', { class: 'tag' }, 'does not run')),
    h('ul', {}, subject.findings.map(findingElement)),
    subject.more ? h('p', { class: 'none' }, `and ${grouped(subject.more)} more: cofferdam audit has them all`) : null);
}

function showAudit(state, host) {
  const audit = state.audit;
  if (!audit || audit.at === null) {
    morph(host, h('p', { class: 'empty' }, audit && audit.failure ? `The host cannot be looked at: ${shown(audit.failure)}` : 'The host is being looked at …'));
    return;
  }
  const needle = state.filter.trim().toLowerCase();
  const fits = (subject) => !needle || (subject.container || 'the engine').toLowerCase().includes(needle);
  const subjects = audit.subjects.filter(fits);
  const counts = SEVERITIES.map((severity) => `${grouped(audit.open[severity] || 0)} ${severity}`);
  if (audit.accepted) counts.push(`${grouped(audit.accepted)} accepted`);
  const none = needle ? 'No container with a finding is called so.' : 'Nothing was found that voids or weakens segmentation.';
  morph(host, h('div', { class: 'audit' },
    h('p', { class: 'said' }, `${count(audit.containers, 'container')}: ${counts.join(', ')}. Looked at `, agoElement(audit.at), '.'),
    audit.failure ? h('p', { class: 'said' }, `Nothing newer is known: ${shown(audit.failure)}`) : null,
    audit.remarks.map((remark) => h('p', { class: 'said' }, shown(remark))),
    subjects.length ? subjects.map(subjectElement) : h('p', { class: 'empty' }, none),
    audit.more && !needle ? h('p', { class: 'said' }, `and ${count(audit.more, 'container')} more, less grave: cofferdam audit has them all`) : null));
}
