// A list of any length with only the visible items in the document. Heights are measured when an item is shown, and kept
// in a Fenwick tree, so that the position of item n and the item at a position cost log(n).

/** Pixels above and below the window in which items are kept. */
const OVERSCAN = 300;

class Heights {
  /** @param {number} count @param {number} estimate pixels of an item that was never shown */
  constructor(count, estimate) {
    this.estimate = estimate;
    this.count = 0;
    this.values = new Float64Array(1024);
    this.sums = new Float64Array(1025);
    this.grow(count);
  }

  /** @param {number} count */
  grow(count) {
    if (count > this.values.length) {
      const values = new Float64Array(Math.max(count, 2 * this.values.length));
      values.set(this.values.subarray(0, this.count));
      this.values = values;
    }
    for (let n = this.count; n < count; n++) this.values[n] = this.estimate;
    this.count = count;
    const sums = new Float64Array(this.values.length + 1);
    for (let n = 1; n < sums.length; n++) {
      sums[n] += this.values[n - 1];
      const up = n + (n & -n);
      if (up < sums.length) sums[up] += sums[n];
    }
    this.sums = sums;
  }

  /** @param {number} index @param {number} height */
  set(index, height) {
    const change = height - this.values[index];
    this.values[index] = height;
    for (let n = index + 1; n < this.sums.length; n += n & -n) this.sums[n] += change;
  }

  /** The position of an item's upper edge. @param {number} index */
  before(index) {
    let sum = 0;
    for (let n = index; n > 0; n -= n & -n) sum += this.sums[n];
    return sum;
  }

  get total() { return this.before(this.count); }

  /** The item at a position. @param {number} y */
  at(y) {
    let index = 0;
    let left = y;
    for (let step = 1 << 30; step > 0; step >>= 1) {
      if (index + step < this.sums.length && this.sums[index + step] <= left) { index += step; left -= this.sums[index]; }
    }
    return Math.min(index, Math.max(0, this.count - 1));
  }
}

export class WindowedList {
  /**
   * @param {HTMLElement} scroller an element with a height and "overflow: auto"
   * @param {{ count: number, estimate: number, make: (index: number) => HTMLElement, drop?: (index: number) => void, moved?: () => void }} options
   */
  constructor(scroller, options) {
    this.scroller = scroller;
    this.options = options;
    this.heights = new Heights(options.count, options.estimate);
    this.space = document.createElement("div");
    this.space.className = "space";
    scroller.append(this.space);
    /** @type {Map<number, HTMLElement>} */
    this.shown = new Map();
    this.follow = false;
    this.anchor = 0;
    this.sizes = new ResizeObserver((entries) => this.measured(entries));
    this.outer = new ResizeObserver(() => this.draw());
    this.outer.observe(scroller);
    this.onscroll = () => { this.draw(); options.moved?.(); };
    scroller.addEventListener("scroll", this.onscroll, { passive: true });
    this.draw();
  }

  /** @param {number} count */
  grow(count) {
    this.heights.grow(count);
    this.draw();
    if (this.follow) this.toEnd();
  }

  draw() {
    const { scrollTop, clientHeight } = this.scroller;
    const { heights, space } = this;
    space.style.height = `${heights.total}px`;
    if (!heights.count) return;
    const first = heights.at(Math.max(0, scrollTop - OVERSCAN));
    const last = heights.at(scrollTop + clientHeight + OVERSCAN);
    for (const [index, element] of this.shown) {
      // The item with the focus stays, so that a key press is not lost while its item is out of sight.
      if ((index < first || index > last) && !element.contains(document.activeElement)) {
        this.sizes.unobserve(element);
        element.remove();
        this.shown.delete(index);
        this.options.drop?.(index);
      }
    }
    for (let index = first; index <= last; index++) {
      if (!this.shown.has(index)) this.add(index);
    }
    this.place();
  }

  /** @param {number} index */
  add(index) {
    const element = this.options.make(index);
    element.classList.add("item");
    element.dataset.index = String(index);
    this.shown.set(index, element);
    let after;
    for (const each of this.shown.keys()) if (each > index && (after === undefined || each < after)) after = each;
    this.space.insertBefore(element, after === undefined ? null : this.shown.get(after) ?? null);
    this.sizes.observe(element);
  }

  /** Make shown items again. @param {...number} indexes */
  renew(...indexes) {
    for (const index of indexes) this.remake(index);
    this.place();
  }

  /** @param {number} index */
  remake(index) {
    const before = this.shown.get(index);
    if (!before) return;
    const active = /** @type {HTMLElement | null} */ (document.activeElement);
    const focused = before.contains(active);
    this.sizes.unobserve(before);
    const element = this.options.make(index);
    element.classList.add("item");
    element.dataset.index = String(index);
    before.replaceWith(element);
    this.shown.set(index, element);
    this.sizes.observe(element);
    // A part that the new element took over, such as a form, keeps the focus and what was typed.
    if (focused && active) (element.contains(active) ? active : element).focus({ preventScroll: true });
  }

  place() {
    for (const [index, element] of this.shown) element.style.top = `${this.heights.before(index)}px`;
  }

  /** @param {ResizeObserverEntry[]} entries */
  measured(entries) {
    const { scroller, heights } = this;
    const anchor = heights.at(scroller.scrollTop);
    const offset = scroller.scrollTop - heights.before(anchor);
    let changed = false;
    for (const entry of entries) {
      const index = Number(/** @type {HTMLElement} */ (entry.target).dataset.index);
      const height = entry.borderBoxSize[0]?.blockSize ?? 0;
      if (height && Math.abs(height - heights.values[index]) > 0.5) { heights.set(index, height); changed = true; }
    }
    if (!changed) return;
    this.space.style.height = `${heights.total}px`;
    // What the reader looks at stays where it is.
    if (this.follow) scroller.scrollTop = heights.total;
    else if (Math.abs(heights.before(anchor) + offset - scroller.scrollTop) > 1) scroller.scrollTop = heights.before(anchor) + offset;
    this.draw();
  }

  /** @param {number} index */
  jump(index) {
    this.follow = false;
    this.scroller.scrollTop = this.heights.before(index);
    this.draw();
  }

  toEnd() {
    this.scroller.scrollTop = this.heights.total;
    this.draw();
  }

  close() {
    this.sizes.disconnect();
    this.outer.disconnect();
    this.scroller.removeEventListener("scroll", this.onscroll);
  }
}
