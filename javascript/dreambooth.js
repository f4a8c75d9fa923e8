// What all parts of the page's script use, one file for each noun: this one, which by its name is loaded first, finds what is on the
// page, and asks the server by clicking buttons that nobody sees. State lives on the server. A part that is loaded twice does nothing.
(function() {
    if (window.dreamboothPage) return;
    const ANSWER_AT_MOST_MS = 30000;
    const page = window.dreamboothPage = {last: null, job: null, asked: 0, polls: 0};

    const root = () => (typeof gradioApp === 'function' ? gradioApp() : document);
    const byId = (id) => root().querySelector('#' + id);
    const fieldOf = (id) => root().querySelector('#' + id + ' textarea, #' + id + ' input');
    // The element with this selector that an event happened in; null if it was elsewhere.
    const within = (event, selector) => (event.target && event.target.closest ? event.target.closest(selector) : null);

    // The framework drops a click on a button whose last one is not answered yet, and while a run goes on answers take their time.
    // What is clicked meanwhile is made up for after the answer, so that the newest one is never missing.
    const unanswered = {};
    const isUnanswered = (id) => Boolean(unanswered[id]) && Date.now() - unanswered[id].since < ANSWER_AT_MOST_MS;
    const click = (id, heard = null) => {
        const element = byId(id);
        if (!element) return false;
        if (isUnanswered(id)) {
            unanswered[id].again = true;
            return true;
        }
        unanswered[id] = {since: Date.now(), again: false, heard};
        (element.tagName === 'BUTTON' ? element : element.querySelector('button') || element).click();
        return true;
    };
    page.answered = (id) => setTimeout(() => {
        const last = unanswered[id] || {};
        delete unanswered[id];
        if (last.heard) last.heard();
        if (last.again) click(id);
    });
    // What is asked for every second can wait for the next one.
    const poll = (id) => isUnanswered(id) || click(id);

    const status = () => {
        const element = root().querySelector('#dreambooth_status .dreambooth-status');
        return element ? element.dataset : null;
    };
    const setText = (id, text) => {
        const field = fieldOf(id);
        if (!field) return false;
        // The framework listens to the element's own setter.
        const own = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value');
        own.set.call(field, text);
        field.dispatchEvent(new Event('input', {bubbles: true}));
        return true;
    };

    const isBusy = (state) => state === 'running' || state === 'queued';
    const pause = (ms) => new Promise((done) => setTimeout(done, ms));
    let saying = Promise.resolve();

    // One after the other, each when the one before is answered: several share a field, and the button of the first would send
    // the text of the second. `holds`, if given, says when its turn comes whether it is still meant.
    function sayThenClick(field, text, button, holds = () => true) {
        const say = async () => {
            if (!holds() || !setText(field, text)) return;
            await pause(100);
            const answer = new Promise((heard) => { if (!click(button, heard)) heard(); });
            await Promise.race([answer, pause(ANSWER_AT_MOST_MS)]);
        };
        saying = saying.then(say, say);
    }

    Object.assign(page, {root, byId, fieldOf, within, click, poll, status, setText, isBusy, sayThenClick});
})();
