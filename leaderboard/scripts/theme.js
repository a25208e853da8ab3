// Before the first paint: the reader's theme. Storage may be forbidden; the system's theme is then the reader's.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const kept = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const keep = (theme) => {
    try {
      localStorage.setItem("theme", theme);
    } catch {
      /* for this page alone */
    }
  };
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  };
  apply(kept());
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector(".theme");
    const name = () => {
      button.textContent = dark() ? "Light" : "Dark";
    };
    button.addEventListener("click", () => {
      const theme = dark() ? "light" : "dark";
      apply(theme);
      keep(theme);
      name();
    });
    name();
  });
})();
