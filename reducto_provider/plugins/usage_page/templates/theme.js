// Follow the theme of Airflow's page around the frame. Without it the system's theme applies.
(() => {
  try {
    const outer = window.parent.document.documentElement;
    if (window.parent === window) return;
    const follow = () => {
      const theme = ["dark", "light"].find((name) => outer.classList.contains(name));
      if (theme) document.documentElement.dataset.theme = theme;
    };
    new MutationObserver(follow).observe(outer, { attributeFilter: ["class"] });
    follow();
  } catch {}
})();
