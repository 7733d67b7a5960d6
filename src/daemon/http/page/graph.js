'use strict';
// What is drawn: the policy's edges, laid out in layers, and on top of them what was tried without one.

/** More services than this are drawn as their segments until one is chosen. */
const MOST_SERVICES = 60;
/** More edges than this are no picture any more. */
const MOST_EDGES = 400;
/** More edges than this have no boxes around segments. */
const MOST_CLUSTERED = 150;
/** More edges than this have their ports only in the details. */
const MOST_LABELS = 48;
/** How long an edge counts as in use after it was used, and an attempt as fresh, in milliseconds. */
const BUSY = 10000;
const FRESH = 10000;
/** Around the picture, for loops and arrows. */
const MARGIN = 18;

const GHOSTS = { '?unmanaged': 'unmanaged', '?closed': 'closed off', '?unknown': 'unknown' };

/** The node that an end of a flow is drawn as. */
function endId(end, view) {
  if (end.kind === 'world' || end.kind === 'host') return end.kind;
  const services = end.services || [];
  const known = services.find((name) => Object.hasOwn(view.services, name));
  if (known !== undefined && end.kind === 'service') return known;
  return end.kind === 'service' && services.length ? '?' + services[0] : '?' + end.kind;
}

const segmentOf = (id) => (id.includes('/') ? id.slice(0, id.indexOf('/')) : '');

/** Nodes, arcs and refusals that are wanted. In groups, a segment is one node. */
function sceneOf(state) {
  const { view, filter, segment } = state;
  const names = Object.keys(view.services);
  const segments = new Set(names.map(segmentOf));
  const needle = filter.trim().toLowerCase();
  const grouped = !needle && segment === '' && names.length > MOST_SERVICES && segments.size > 1;
  const wanted = (id) => (!needle || id.toLowerCase().includes(needle)) && (!segment || segment === '*' || segmentOf(id) === segment);
  const everything = !needle && (!segment || segment === '*');
  const drawn = (id) => (grouped && Object.hasOwn(view.services, id) ? 'segment:' + segmentOf(id) : id);

  const scene = { grouped, nodes: new Map(), arcs: new Map(), refusals: new Map(), left: 0 };
  const add = (id) => { if (!scene.nodes.has(id)) scene.nodes.set(id, nodeOf(id, view)); };
  for (const name of names) if (wanted(name)) add(drawn(name));
  view.edges.forEach((edge, index) => {
    if (!everything && !wanted(edge.from) && !wanted(edge.to)) return;
    const [from, to] = [drawn(edge.from), drawn(edge.to)];
    if (grouped && from === to) return;
    add(from);
    add(to);
    const key = JSON.stringify([from, to]);
    const arc = scene.arcs.get(key) || { key, from, to, edges: [] };
    arc.edges.push(index);
    scene.arcs.set(key, arc);
  });
  for (const flow of state.flows.values()) {
    if (flow.verdict === 'identity') continue;
    const ends = [endId(flow.from, view), endId(flow.to, view)];
    if (!everything && !ends.some(wanted)) continue;
    const [from, to] = ends.map(drawn);
    const key = JSON.stringify([from, to, flow.verdict]);
    const refusal = scene.refusals.get(key) || { key, from, to, verdict: flow.verdict, attempts: 0, last: 0 };
    refusal.attempts += flow.attempts;
    refusal.last = Math.max(refusal.last, Date.parse(flow.last_seen));
    scene.refusals.set(key, refusal);
    add(from);
    add(to);
  }
  // Without boxes around segments, each says which it is of.
  scene.plain = scene.arcs.size > MOST_CLUSTERED;
  if (scene.plain) for (const node of scene.nodes.values()) if (node.kind === 'service') node.title = node.full;
  return scene;
}

function nodeOf(id, view) {
  const service = Object.hasOwn(view.services, id) ? view.services[id] : null;
  if (service) {
    const waiting = service.endpoints - service.bound;
    return {
      id, kind: 'service', segment: segmentOf(id), title: id.slice(id.indexOf('/') + 1),
      sub: count(service.containers, 'container') + (service.audit || view.audit_host ? ', audit' : ''),
      light: service.containers === 0 ? null : waiting > 0 ? 'late' : 'fine', full: id,
    };
  }
  if (id.startsWith('segment:')) {
    const name = id.slice('segment:'.length);
    const number = Object.keys(view.services).filter((it) => segmentOf(it) === name).length;
    return { id, kind: 'segment', segment: '', title: name, sub: count(number, 'service'), light: null, full: name };
  }
  if (id.startsWith('?')) {
    return { id, kind: 'ghost', segment: '', title: GHOSTS[id] || id.slice(1), sub: 'no part of the policy', light: null, full: GHOSTS[id] || id.slice(1) };
  }
  const external = id.includes('/');
  return { id, kind: 'outside', segment: '', title: external ? id : id, sub: external ? 'external' : '', light: null, full: id };
}

function arcTotals(arc, state) {
  let packets = 0;
  let busy = false;
  const ports = new Set();
  for (const index of arc.edges) {
    packets += (state.counters.edges[index] || [0])[0] || 0;
    busy = busy || (state.busy[index] || 0) > Date.now();
    for (const port of state.view.edges[index].ports) ports.add(port.replace(/\/tcp$/, ''));
  }
  return { packets, busy, ports: [...ports] };
}

function arcLabel(ports, packets) {
  const words = ports.slice(0, 3).map((port) => shown(port));
  if (ports.length > 3) words.push(`${ports.length - 3} more`);
  return words.join(', ') + (packets > 0 ? ` · ${compact(packets)}` : '');
}

/** Where everything is. */
function layoutOf(scene, down, labels, state) {
  const graph = new dagre.graphlib.Graph({ compound: true, multigraph: true });
  const { plain } = scene;
  graph.setGraph({
    rankdir: down ? 'TB' : 'LR', nodesep: down ? 22 : 26, ranksep: down ? 54 : labels ? 44 : 70, edgesep: 14, marginx: 22, marginy: 22,
    ranker: plain ? 'tight-tree' : 'network-simplex',
  });
  graph.setDefaultEdgeLabel(() => ({}));
  // The library keeps names in objects, where some words mean something else: it is given numbers.
  const ids = new Map();
  const idOf = (kind, name) => {
    const key = kind + name;
    if (!ids.has(key)) ids.set(key, 'n' + ids.size);
    return ids.get(key);
  };
  const segments = new Set();
  for (const node of scene.nodes.values()) {
    let most = 26;
    do node.label = short(node.title, most--);
    while (most > 4 && widthOf(node.label, '600 13px') > 190);
    const length = Math.max(widthOf(node.label, '600 13px'), widthOf(node.sub, '11.5px'));
    node.width = Math.max(Math.ceil(length) + (node.light ? 46 : 30), 84);
    node.height = node.sub ? 48 : 36;
    graph.setNode(idOf('node', node.id), { width: node.width, height: node.height });
    if (node.segment) segments.add(node.segment);
  }
  if (!plain) {
    for (const name of segments) graph.setNode(idOf('segment', name), {});
    for (const node of scene.nodes.values()) if (node.segment) graph.setParent(idOf('node', node.id), idOf('segment', node.segment));
  }
  for (const arc of scene.arcs.values()) {
    // A loop is drawn by hand.
    if (arc.from === arc.to) continue;
    const { ports } = arcTotals(arc, state);
    const width = labels ? widthOf(arcLabel(ports, 99900), '600 11.5px') + 12 : 0;
    graph.setEdge(idOf('node', arc.from), idOf('node', arc.to), labels ? { width, height: 16, labelpos: 'c' } : {}, idOf('arc', arc.key));
  }
  // What belongs to no edge still has a place near who tried.
  for (const { from, to, key } of scene.refusals.values()) {
    const alone = (id) => graph.nodeEdges(idOf('node', id)).length === 0;
    if (from !== to && (alone(from) || alone(to))) graph.setEdge(idOf('node', from), idOf('node', to), { weight: 0.1 }, idOf('arc', key));
  }
  dagre.layout(graph);
  return {
    down,
    size: { width: graph.graph().width, height: graph.graph().height },
    boxes: new Map([...scene.nodes.keys()].map((id) => [id, graph.node(idOf('node', id))])),
    clusters: plain ? [] : [...segments].map((name) => [name, graph.node(idOf('segment', name))]),
    edge: (arc) => graph.edge({ v: idOf('node', arc.from), w: idOf('node', arc.to), name: idOf('arc', arc.key) }),
  };
}

/** A smooth line through all of these points, straight in the direction of the layers at each. */
function curve(points, down) {
  let path = `M${points[0].x},${points[0].y}`;
  for (let i = 1; i < points.length; i++) {
    const [from, to] = [points[i - 1], points[i]];
    const middle = down ? (from.y + to.y) / 2 : (from.x + to.x) / 2;
    path += down ? `C${from.x},${middle} ${to.x},${middle} ${to.x},${to.y}` : `C${middle},${from.y} ${middle},${to.y} ${to.x},${to.y}`;
  }
  return path;
}

/** The middle of that side of a box that a point lies on, in the direction of the layers. */
function side(box, point, down) {
  if (down) return { x: box.x, y: box.y + (point.y >= box.y ? 0.5 : -0.5) * box.height };
  return { x: box.x + (point.x >= box.x ? 0.5 : -0.5) * box.width, y: box.y };
}

const ruler = document.createElement('canvas').getContext('2d');

/** How wide a text is drawn. */
function widthOf(text, font) {
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

/** An arrow's head at `tip`, coming from `from`. */
function head(from, tip) {
  const angle = Math.atan2(tip.y - from.y, tip.x - from.x);
  const at = (turn, length) => `${(tip.x - length * Math.cos(angle + turn)).toFixed(1)},${(tip.y - length * Math.sin(angle + turn)).toFixed(1)}`;
  return s('path', { class: 'head', d: `M${tip.x},${tip.y}L${at(0.42, 9)}L${at(-0.42, 9)}Z` });
}

/** Where the line from inside a box to a point leaves the box. */
function border(box, point) {
  const [dx, dy] = [point.x - box.x, point.y - box.y];
  if (!dx && !dy) return { x: box.x, y: box.y - box.height / 2 };
  const scale = Math.min(box.width / 2 / Math.abs(dx || 1e-9), box.height / 2 / Math.abs(dy || 1e-9));
  return { x: box.x + dx * scale, y: box.y + dy * scale };
}

function loop(box, bow) {
  const top = box.y - box.height / 2;
  const [a, b] = [{ x: box.x - 16, y: top }, { x: box.x + 16, y: top }];
  const d = `M${a.x},${a.y}C${a.x - 10},${top - bow} ${b.x + 10},${top - bow} ${b.x},${b.y}`;
  return { d, before: { x: b.x + 6, y: top - bow / 2 }, tip: b, middle: { x: box.x, y: top - bow * 0.75 } };
}

/** A line between two boxes, bowed so by its middle. */
function bow(a, b, lift) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = Math.hypot(dx, dy) || 1;
  const control = { x: (a.x + b.x) / 2 - dy / length * lift * 2, y: (a.y + b.y) / 2 + dx / length * lift * 2 };
  const [from, tip] = [border(a, control), border(b, control)];
  const at = (t) => ({
    x: (1 - t) * (1 - t) * from.x + 2 * t * (1 - t) * control.x + t * t * tip.x,
    y: (1 - t) * (1 - t) * from.y + 2 * t * (1 - t) * control.y + t * t * tip.y,
  });
  return { d: `M${from.x},${from.y}Q${control.x},${control.y} ${tip.x},${tip.y}`, before: control, tip, at, middle: at(0.5) };
}

const LIFTS = [0.1, 0.16, 0.24, 0.34, 0.5].flatMap((part) => [part, -part]);

/** The bow that is least in the way of boxes and of what was drawn before, with a place for its label. */
function route(a, b, boxes, taken) {
  const length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const inside = (point, box, room) => Math.abs(point.x - box.x) < box.width / 2 + room && Math.abs(point.y - box.y) < box.height / 2 + room;
  let best = null;
  for (const part of LIFTS) {
    const line = bow(a, b, Math.sign(part) * Math.max(18, Math.abs(part) * length));
    let cost = Math.abs(part) * 6;
    for (let i = 1; i < 24; i++) {
      const point = line.at(i / 24);
      for (const box of boxes) if (box !== a && box !== b && inside(point, box, 8)) cost += 3;
      for (const other of taken) if (Math.hypot(point.x - other.x, point.y - other.y) < 16) cost += 0.6;
    }
    if (best && cost >= best.cost) continue;
    const free = (t) => {
      const point = line.at(t);
      return ![...boxes].some((box) => inside(point, box, 14)) && !taken.some((other) => other.label && Math.abs(point.x - other.x) < 46 && Math.abs(point.y - other.y) < 22);
    };
    const t = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74].find(free) ?? 0.5;
    best = { cost, line: { ...line, middle: line.at(t) } };
  }
  for (let i = 2; i < 23; i += 2) taken.push(best.line.at(i / 24));
  taken.push({ ...best.line.middle, label: true });
  return best.line;
}

/** The graph on the page. */
class Picture {
  constructor(host, onselect) {
    this.host = host;
    this.onselect = onselect;
    this.shape = null;
    this.scale = null;
  }

  /** Draws what the state wants; from scratch only where who or what there is has changed. */
  show(state) {
    const scene = sceneOf(state);
    this.scene = scene;
    if (scene.nodes.size === 0) {
      this.shape = null;
      const text = state.filter || state.segment ? 'No service is called so.' : 'The policy in force has no services yet.';
      replace(this.host, h('p', { class: 'empty' }, text));
      return scene;
    }
    if (scene.arcs.size > MOST_EDGES) {
      this.shape = null;
      replace(this.host, h('p', { class: 'empty' }, `${grouped(scene.arcs.size)} edges are no picture any more: choose a segment, or filter.`));
      return scene;
    }
    // It is laid out anew only for a host that is quite another one.
    const room = [this.host.clientWidth, this.host.clientHeight].map((length) => Math.round(length / 150));
    const labels = scene.arcs.size <= MOST_LABELS;
    const nodes = [...scene.nodes.values()].map((node) => [node.id, node.title, node.sub, node.light]);
    const alone = [...scene.refusals.values()].map((it) => [it.from, it.to]).filter((ends) => ends.some((id) => id.startsWith('?') || !this.hasEdges(id, scene)));
    const ports = [...scene.arcs.values()].map((arc) => [arc.key, arcTotals(arc, state).ports]);
    const shape = JSON.stringify([room, labels, nodes, ports, alone]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.draw(scene, labels, state);
    }
    this.refresh(state);
    return scene;
  }

  hasEdges(id, scene) {
    return [...scene.arcs.values()].some((arc) => arc.from === id || arc.to === id);
  }

  /** To the right or downwards, whichever is larger on the page. */
  layout(scene, labels, state) {
    const { clientWidth: width, clientHeight: height } = this.host;
    const fit = ({ size }) => Math.min(width / size.width, Math.max(height, 400) / size.height);
    if (scene.nodes.size > 80) return layoutOf(scene, width < 640, labels, state);
    const [right, down] = [false, true].map((it) => layoutOf(scene, it, labels, state));
    return fit(down) > (width < 640 ? 0.75 : 1.1) * fit(right) ? down : right;
  }

  draw(scene, labels, state) {
    const focused = document.activeElement && document.activeElement.closest('.node');
    const layout = this.layout(scene, labels, state);
    this.boxes = layout.boxes;
    this.labels = labels;
    const clusters = layout.clusters.map(([name, box]) => {
      const [x, y] = [box.x - box.width / 2, box.y - box.height / 2];
      return s('g', { class: 'cluster' },
        s('rect', { x, y, width: box.width, height: box.height, rx: 14 }),
        s('text', { x: x + 14, y: y + 14, class: 'name' }, short(name, 30)));
    });
    this.arcs = new Map();
    const edges = [...scene.arcs.values()].map((arc) => {
      const box = this.boxes.get(arc.from);
      let line;
      if (arc.from === arc.to) {
        line = loop(box, 26);
      } else {
        const { points, x, y } = layout.edge(arc);
        const between = points.slice(1, -1);
        const [from, tip] = [side(box, between[0], layout.down), side(this.boxes.get(arc.to), between.at(-1), layout.down)];
        const before = layout.down ? { x: tip.x, y: between.at(-1).y } : { x: between.at(-1).x, y: tip.y };
        const middle = x === undefined ? between[Math.floor(between.length / 2)] : { x, y };
        line = { d: curve([from, ...between, tip], layout.down), before, tip, middle };
      }
      const title = s('title');
      const text = labels ? s('text', { x: line.middle.x, y: line.middle.y }) : null;
      const element = s('g', { class: 'edge', 'data-from': arc.from, 'data-to': arc.to }, title, s('path', { d: line.d }), head(line.before, line.tip), text);
      this.arcs.set(arc.key, { arc, element, title, text, middle: line.middle });
      return element;
    });
    this.nodes = new Map();
    const nodes = [...scene.nodes.values()].map((node) => {
      const element = this.node(node);
      this.nodes.set(node.id, element);
      return element;
    });
    this.refusals = s('g', { class: 'refusals' });
    this.laid = layout.size;
    this.size = this.laid;
    this.svg = s('svg', {
      class: clusters.length ? 'graph inside' : 'graph', role: 'group', 'aria-label': 'Allow-graph',
    }, clusters, edges, this.refusals, nodes);
    replace(this.host, this.svg);
    if (focused && this.nodes.has(focused.dataset.id)) this.nodes.get(focused.dataset.id).focus({ preventScroll: true });
  }

  node(node) {
    const box = this.boxes.get(node.id);
    const [x, y] = [box.x - node.width / 2, box.y - node.height / 2];
    const left = node.light ? 30 : 0;
    const middle = node.light ? x + left : box.x;
    const anchor = node.light ? 'start' : 'middle';
    const label = [node.full, node.sub, node.light === 'late' ? 'not all bound' : ''].filter(Boolean).map((text) => shown(text)).join(', ');
    return s('g', {
      class: `node ${node.kind}`, tabindex: 0, role: 'button', 'aria-label': label, 'data-id': node.id,
      onclick: () => this.onselect(node), onkeydown: (event) => this.key(event, node),
    },
    s('title', {}, shown(node.full)),
    s('rect', { class: 'box', x, y, width: node.width, height: node.height, rx: node.kind === 'outside' ? node.height / 2 : 10 }),
    node.light ? s('circle', { class: node.light, cx: x + 16, cy: box.y, r: 4.5 }) : null,
    s('text', { class: 'title name', x: middle, y: node.sub ? box.y - 8.5 : box.y, 'text-anchor': anchor }, node.label),
    node.sub ? s('text', { class: 'sub', x: middle, y: box.y + 10, 'text-anchor': anchor }, node.sub) : null);
  }

  /** Enter and space choose; arrows go to the next node in their direction. */
  key(event, node) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      this.onselect(node);
      return;
    }
    const direction = directions[event.key];
    if (!direction) return;
    event.preventDefault();
    const here = this.boxes.get(node.id);
    let best = null;
    for (const [id, box] of this.boxes) {
      const [dx, dy] = [box.x - here.x, box.y - here.y];
      const along = dx * direction[0] + dy * direction[1];
      const across = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
      if (along <= 1) continue;
      const distance = along + 2 * across;
      if (!best || distance < best.distance) best = { id, distance };
    }
    if (best) this.nodes.get(best.id).focus();
  }

  /** Everything that changes without the layout: use, attempts, what is selected. */
  refresh(state) {
    if (!this.shape) return;
    const near = new Set([state.selected]);
    for (const { arc } of this.arcs.values()) {
      if (arc.from === state.selected) near.add(arc.to);
      if (arc.to === state.selected) near.add(arc.from);
    }
    for (const { from, to } of this.scene.refusals.values()) {
      if (from === state.selected) near.add(to);
      if (to === state.selected) near.add(from);
    }
    const chosen = state.selected && this.nodes.has(state.selected);
    for (const [id, element] of this.nodes) {
      element.classList.toggle('selected', id === state.selected);
      element.classList.toggle('apart', Boolean(chosen && !near.has(id)));
    }
    const apart = (ends) => chosen && ends.from !== state.selected && ends.to !== state.selected;
    for (const { arc, element, title, text } of this.arcs.values()) {
      const { packets, busy, ports } = arcTotals(arc, state);
      element.setAttribute('class', ['edge', busy ? 'busy' : packets > 0 ? 'used' : 'unused', apart(arc) ? 'apart' : ''].join(' '));
      const label = arcLabel(ports, packets);
      if (text && text.textContent !== label) text.textContent = label;
      title.textContent = `${shown(arc.from)} → ${shown(arc.to)}: ${ports.map((port) => shown(port)).join(', ')}\n${count(packets, 'opening packet')}`;
    }
    this.drawRefusals(apart);
  }

  drawRefusals(apart) {
    const drawn = [];
    // Ports of edges are in the way, too.
    const taken = [...this.arcs.values()].filter(({ text }) => text).map(({ middle }) => ({ ...middle, label: true }));
    for (const refusal of this.scene.refusals.values()) {
      const [a, b] = [this.boxes.get(refusal.from), this.boxes.get(refusal.to)];
      if (!a || !b) continue;
      const line = refusal.from === refusal.to ? loop(a, 34) : route(a, b, [...this.boxes.values()], taken);
      const fresh = Date.now() - refusal.last < FRESH;
      const text = `${compact(refusal.attempts)}×`;
      const width = text.length * 7 + 14;
      drawn.push(s('g', {
        class: ['refusal', refusal.verdict, fresh ? 'fresh' : '', apart(refusal) ? 'apart' : ''].join(' '),
        'data-from': refusal.from, 'data-to': refusal.to, 'data-attempts': refusal.attempts,
      },
      s('title', {}, `${shown(refusal.from)} → ${shown(refusal.to)}: ${count(refusal.attempts, 'attempt')} ${refusal.verdict}`),
      s('path', { d: line.d }), head(line.before, line.tip),
      s('rect', { class: 'pill', x: line.middle.x - width / 2, y: line.middle.y - 9, width, height: 18, rx: 9 }),
      s('text', { x: line.middle.x, y: line.middle.y }, text)));
    }
    this.refusals.replaceChildren(...drawn);
    // Bows may leave what the layout knows.
    const reach = (pick, field, edge) => pick(edge, ...taken.map((point) => point[field]));
    const { width, height } = this.laid;
    const [left, top] = [reach(Math.min, 'x', 0) - MARGIN, reach(Math.min, 'y', 0) - MARGIN];
    const size = { width: reach(Math.max, 'x', width) + MARGIN - left, height: reach(Math.max, 'y', height) + MARGIN - top };
    const box = [left, top, size.width, size.height].map(Math.round).join(' ');
    if (this.svg.getAttribute('viewBox') === box) return;
    this.svg.setAttribute('viewBox', box);
    this.size = size;
    this.zoom(this.scale);
  }

  /** `null` fits the width, as far as it stays legible. */
  zoom(scale) {
    this.scale = scale;
    if (!this.svg) return;
    const fit = Math.min(1.3, (this.host.clientWidth - 4) / this.size.width, Math.max(0.8, (this.host.clientHeight - 8) / this.size.height));
    this.actual = scale ?? Math.max(0.7, fit);
    this.svg.setAttribute('width', Math.round(this.size.width * this.actual));
    this.svg.setAttribute('height', Math.round(this.size.height * this.actual));
  }

  zoomBy(factor) {
    this.zoom(Math.min(2.5, Math.max(0.2, (this.actual || 1) * factor)));
  }
}
