'use strict';
// The head, the list of attempts, a service's details and the matrix.

/** Attempts beyond this number are only counted. */
const MOST_ATTEMPTS = 100;

const STATES = {
  enforcing: 'Enforcing', degraded: 'Degraded', waiting: 'Waiting for the engine', starting: 'Starting',
};

function showHead(state) {
  const { view, counters } = state;
  byId('health').className = `health ${Object.hasOwn(STATES, view.state) ? view.state : ''}`;
  byId('health-text').textContent = (STATES[view.state] || shown(view.state)) + (view.settled ? '' : ' · changes under way');
  const policy = view.policy;
  const revision = policy.git && policy.git.commit ? policy.git.commit : policy.revision;
  const services = Object.values(view.services);
  const sum = (field) => services.reduce((all, service) => all + service[field], 0);
  const facts = [
    ['Policy', revision ? [h('span', { class: 'mono', title: shown(revision) }, short(revision.slice(0, 10), 10)), policy.accepted ? [' ', agoElement(policy.accepted)] : ''] : 'none yet'],
    ['Services', grouped(services.length)],
    ['Edges', grouped(view.edges.length)],
    ['Endpoints', sum('bound') === sum('endpoints') ? `${grouped(sum('bound'))} bound` : `${grouped(sum('bound'))} of ${grouped(sum('endpoints'))} bound`],
    ['Denied', counters.denied_packets === null || counters.denied_packets === undefined ? 'unknown' : count(counters.denied_packets, 'packet')],
    ['Engine', view.engine ? shown(view.engine) : 'not connected'],
  ];
  if (counters.audited_packets) facts.splice(5, 0, ['Audited', count(counters.audited_packets, 'packet')]);
  if (view.repairs > 0) facts.push(['Repairs', grouped(view.repairs)]);
  morph(byId('facts'), facts.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));

  const lists = [
    ['What is not as it should be', view.reasons],
    ['Claimed by two segments, and denied everything', Object.keys(view.quarantined)],
    ['Cut off, since no rule can hold them', Object.keys(view.isolated)],
    ['No rule can hold', Object.entries(view.unenforceable).map(([name, reasons]) => `${name}: ${reasons.join('; ')}`)],
  ].filter(([, found]) => found.length > 0);
  const notice = byId('notice');
  notice.hidden = lists.length === 0;
  morph(notice, lists.map(([title, found]) => [
    h('h2', {}, title),
    h('ul', {}, found.slice(0, 5).map((text) => h('li', { class: 'name' }, shown(text)))),
    found.length > 5 ? h('p', {}, `and ${found.length - 5} more: cofferdam status has them all`) : null,
  ]).flat());
}

/** One end of a flow as it is shown. */
function endText(end) {
  const services = (end.services || []).join('+');
  const detail = end.container || end.address || '';
  if (['world', 'host', 'unknown'].includes(end.kind)) return [end.kind, end.address || ''];
  return services ? [services, detail] : [detail || end.kind, end.kind];
}

function endElement(end) {
  const [name, detail] = endText(end);
  return h('span', { class: 'name', title: shown(detail) }, short(name, 60));
}

function whereTo(flow) {
  if (flow.port !== undefined && flow.port !== null) return `${flow.port}/${flow.protocol}`;
  if (flow.many_ports) return `many ports/${flow.protocol}`;
  return flow.icmp_type === undefined || flow.icmp_type === null ? flow.protocol : `${flow.protocol} type ${flow.icmp_type}`;
}

const VERDICTS = { denied: 'denied', audited: 'passed, audited', identity: 'forged' };

function flowElement(flow) {
  const fresh = Date.now() - Date.parse(flow.last_seen) < FRESH;
  const detail = [endText(flow.from)[1], endText(flow.to)[1]];
  const between = detail.some(Boolean) ? detail.map((text) => shown(text || '?')).join(' → ') : '';
  return h('li', { class: `${Object.hasOwn(VERDICTS, flow.verdict) ? flow.verdict : ''} ${fresh ? 'fresh' : ''}` },
    h('div', { class: 'who' }, endElement(flow.from), h('span', { class: 'arrow' }, '→'), endElement(flow.to), h('span', { class: 'mono' }, shown(whereTo(flow)))),
    h('div', { class: 'why name' }, shown(flow.reason)),
    h('div', { class: 'when' }, h('b', {}, `${compact(flow.attempts)}× ${VERDICTS[flow.verdict] || ''}`), agoElement(flow.last_seen), h('span', { class: 'name' }, short(between, 60))));
}

/** The latest first. */
function latest(flows) {
  return [...flows].sort((a, b) => b.seq - a.seq);
}

function showFlows(state) {
  const needle = state.filter.trim().toLowerCase();
  const ends = (flow) => [flow.from, flow.to].flatMap((end) => [...(end.services || []), end.container || '', end.kind]);
  const fits = (flow) => (!needle || ends(flow).some((name) => name.toLowerCase().includes(needle)))
    && (!state.segment || state.segment === '*' || ends(flow).some((name) => segmentOf(name) === state.segment))
    && (!state.selected || !Object.hasOwn(state.view.services, state.selected) || [flow.from, flow.to].some((end) => (end.services || []).includes(state.selected)));
  const fitting = latest([...state.flows.values()].filter(fits));
  const attempts = fitting.reduce((all, flow) => all + flow.attempts, 0);
  byId('denied-count').textContent = fitting.length ? `${grouped(attempts)} in ${count(fitting.length, 'flow')}` : '';
  byId('denied-said').textContent = fitting.length ? '' : state.flows.size ? 'None that fits what is chosen.' : 'Nothing was denied since the log began.';
  morph(byId('flows'), fitting.slice(0, MOST_ATTEMPTS).map(flowElement));
  const { unlogged_packets: unlogged = 0, lost_packets: lost = 0, forgotten_flows: forgotten = 0 } = state.missed || {};
  const more = [];
  if (fitting.length > MOST_ATTEMPTS) more.push(`${grouped(fitting.length - MOST_ATTEMPTS)} older ones are not shown`);
  if (unlogged + lost > 0) more.push(`${count(unlogged + lost, 'denied packet')} could not be looked at`);
  if (forgotten > 0) more.push(`${count(forgotten, 'older flow')} made room for others`);
  byId('flows-more').hidden = more.length === 0;
  byId('flows-more').textContent = more.join('; ') + '.';
}

// ------------------------------------------------------------------------------------------------------------- details

function edgeRow(state, index, other) {
  const edge = state.view.edges[index];
  const [packets, used] = state.counters.edges[index] || [null, null];
  const ports = edge.ports.map((port) => shown(port)).join(', ');
  const notes = [edge.why, edge.until ? `until ${edge.until}` : null, edge.declared].filter(Boolean).map((text) => shown(text)).join(' · ');
  return h('li', {},
    h('span', {}, peerButton(state, other), h('small', {}, notes)),
    h('span', { class: 'mono' }, ports),
    h('span', { class: 'num', title: 'packets that opened connections' },
      packets === null ? '–' : packets === 0 && !used ? 'unused' : compact(packets), used ? h('small', {}, agoElement(used)) : null));
}

function peerButton(state, id) {
  if (!Object.hasOwn(state.view.services, id)) return named(id, 50);
  return h('button', { class: 'link name', 'data-select': id }, short(id, 50));
}

function showDetail(state) {
  const pane = byId('detail');
  const id = state.selected;
  const service = id && Object.hasOwn(state.view.services, id) ? state.view.services[id] : null;
  const known = id && (service || state.view.edges.some((edge) => edge.from === id || edge.to === id));
  pane.hidden = !known;
  if (!known) return;
  const edges = state.view.edges.map((edge, index) => [edge, index]);
  const into = edges.filter(([edge]) => edge.to === id).map(([edge, index]) => edgeRow(state, index, edge.from));
  const out = edges.filter(([edge]) => edge.from === id).map(([edge, index]) => edgeRow(state, index, edge.to));
  const rows = (title, found, none) => [h('h3', {}, title), found.length ? h('ul', { class: 'rows' }, found) : h('p', { class: 'none' }, none)];
  const tags = [];
  if (service && (service.audit || state.view.audit_host)) tags.push(h('span', { class: 'tag audit' }, 'in audit: nothing is dropped'));
  if (service && service.bound < service.endpoints) tags.push(h('span', { class: 'tag bad' }, `${service.endpoints - service.bound} not bound`));
  morph(pane,
    h('header', { class: 'card-head' }, h('h2', { class: 'name' }, shown(id)), tags,
      h('button', { class: 'close', 'aria-label': 'Close', 'data-close': true }, '×')),
    rows('May be reached by', into, 'Nobody.'),
    rows('May reach', out, 'Nobody.'),
    service ? [h('h3', {}, 'Containers'), containersElement(state, id)] : null);
}

function containersElement(state, id) {
  const told = state.containers && state.containers.id === id ? state.containers.list : null;
  if (!told) return h('p', { class: 'none' }, 'Asking …');
  if (!told.length) return h('p', { class: 'none' }, 'None runs.');
  const row = (container) => {
    const endpoints = container.endpoints.filter((endpoint) => endpoint.addresses.length > 0 && endpoint.state !== 'unguarded');
    const bound = endpoints.length > 0 && endpoints.every((endpoint) => endpoint.bound);
    const word = endpoints.length === 0 ? 'not running' : bound ? 'bound' : 'not all bound';
    const addresses = container.endpoints.flatMap((endpoint) => endpoint.addresses.map((address) => `${shown(address)} on ${shown(endpoint.network)}`));
    return h('li', {},
      h('span', {}, named(container.name), h('small', {}, addresses.slice(0, 6).join(', ') + (addresses.length > 6 ? ` and ${addresses.length - 6} more` : ''))),
      h('span', { class: `num ${bound ? 'bound' : 'pending'}` }, word));
  };
  const more = told.length > 50 ? h('li', {}, `and ${told.length - 50} more`) : null;
  return h('ul', { class: 'rows' }, told.slice(0, 50).map(row), more);
}

// -------------------------------------------------------------------------------------------------------------- matrix

/** Who may reach whom, and who tried. Rows are callers. */
function showMatrix(state, host) {
  const scene = sceneOf(state);
  const nodes = [...scene.nodes.values()].sort((a, b) => (a.kind === b.kind ? (a.id < b.id ? -1 : 1) : order(a) - order(b)));
  if (nodes.length === 0 || nodes.length > 150) {
    const text = nodes.length ? `${nodes.length} rows are no table any more: choose a segment, or filter.` : 'No service is called so.';
    morph(host, h('p', { class: 'empty' }, text));
    return;
  }
  const button = (node) => h('button', { class: 'name', title: shown(node.full), 'data-choose': node.id }, short(node.full, 30));
  // One name is told apart by the segment only where there are several.
  const cell = (from, to) => {
    const arc = scene.arcs.get(JSON.stringify([from.id, to.id]));
    const denied = scene.refusals.get(JSON.stringify([from.id, to.id, 'denied']));
    const audited = scene.refusals.get(JSON.stringify([from.id, to.id, 'audited']));
    const words = [];
    if (arc) words.push(`may: ${arcTotals(arc, state).ports.map((port) => shown(port)).join(', ')}`);
    if (denied) words.push(`${count(denied.attempts, 'attempt')} denied`);
    if (audited) words.push(`${count(audited.attempts, 'attempt')} audited`);
    const title = `${shown(from.full)} → ${shown(to.full)}: ${words.join('; ') || 'closed'}`;
    const refused = denied || audited;
    const kind = denied ? 'tried' : audited ? 'audited' : arc ? 'may' : from.id === to.id ? 'self' : '';
    const text = refused ? (arc ? '●' : '') + compact(refused.attempts) : arc ? '●' : '';
    return h('td', { class: kind, title, 'aria-label': title, 'data-from': from.id, 'data-to': to.id }, text);
  };
  morph(host, h('table', { class: 'grid' },
    h('thead', {}, h('tr', {}, h('th', { class: 'corner', scope: 'col' }, 'from ↓ to →'), nodes.map((to) => h('th', { scope: 'col' }, button(to))))),
    h('tbody', {}, nodes.map((from) => h('tr', {}, h('th', { scope: 'row' }, button(from)), nodes.map((to) => cell(from, to)))))));
}

const order = (node) => ['segment', 'service', 'outside', 'ghost'].indexOf(node.kind);
