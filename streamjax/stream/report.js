// The page is complete without this; it only brings the chosen second to the top, and plays.
(() => {
  const find = (query) => document.querySelector(query);
  const cards = [...document.querySelectorAll(".seconds li")];
  const reel = find(".reel"), lanes = find(".reel svg"), cursor = find(".cursor");
  const picture = find(".screen img"), caption = find(".caption span"), side = find(".side .verdict");
  const standing = find(".standing");
  const play = find("#play"), pace = find("#pace");
  if (!cards.length) return;
  const step = Number(lanes.dataset.step), times = cards.map((card) => Number(card.dataset.time));
  let pinned = Number(find(".screen").dataset.first), timer = null, speed = 1;
  document.body.classList.add("live");

  const show = (i) => {
    const card = cards[i];
    picture.src = card.querySelector("img").src;
    picture.alt = card.querySelector("img").alt;
    caption.textContent = card.dataset.caption;
    standing.textContent = card.dataset.standing;
    side.replaceChildren(...card.querySelector(".verdict").cloneNode(true).childNodes);
    cursor.setAttribute("x", i * step);
    find(".seconds li.now")?.classList.remove("now");
    card.classList.add("now");
  };
  const pin = (i) => {
    pinned = Math.max(0, Math.min(cards.length - 1, i));
    show(pinned);
    const x = pinned * step;
    if (x < reel.scrollLeft || x + step > reel.scrollLeft + reel.clientWidth)
      reel.scrollLeft = x - reel.clientWidth / 3;
  };
  const stop = () => {
    clearTimeout(timer);
    timer = null;
    play.textContent = "Play";
  };
  const next = () => {
    if (pinned + 1 >= cards.length) return stop();
    const wait = Math.max(times[pinned + 1] - times[pinned], 0.02);
    timer = setTimeout(() => { pin(pinned + 1); next(); }, (wait * 1000) / speed);
  };
  const toggle = () => {
    if (timer !== null) return stop();
    play.textContent = "Pause";
    if (pinned + 1 >= cards.length) pin(0);
    next();
  };

  lanes.addEventListener("pointermove", (event) => {
    const x = event.clientX - lanes.getBoundingClientRect().left;
    if (timer === null) show(Math.max(0, Math.min(cards.length - 1, Math.floor(x / step))));
  });
  lanes.addEventListener("pointerleave", () => show(pinned));
  cards.forEach((card, i) => card.addEventListener("click", () => {
    pin(i);
    find(".stage").scrollIntoView({ block: "nearest" });
  }));
  for (const link of document.querySelectorAll("a[href^='#t']"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      stop();
      pin(Number(link.getAttribute("href").slice(2)));
    });
  play.addEventListener("click", toggle);
  pace.addEventListener("click", () => {
    speed = speed === 4 ? 1 : speed * 2;
    pace.textContent = `${speed}\u00d7`;
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === " " && event.target.tagName !== "BUTTON") toggle();
    else if (event.key === "ArrowRight") pin(pinned + 1);
    else if (event.key === "ArrowLeft") pin(pinned - 1);
    else return;
    event.preventDefault();
  });
  if (/^#t\d+$/.test(location.hash)) {
    pin(Number(location.hash.slice(2)));
    addEventListener("load", () => setTimeout(() => scrollTo(0, 0))); // the card is up here now
  } else show(pinned);
})();
